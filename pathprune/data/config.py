"""Which images, as a recipe says it."""

from __future__ import annotations

from pydantic import Field

from pathprune.section import Section


class SplitsConfig(Section):
    """Which split each use reads, as in `datasets`: train, train[:1000], test[50%:]."""

    mine: str = "train"
    calibrate: str = "train"
    train: str = "train"
    validation: str | None = None
    evaluate: str = "test"


class DataConfig(Section):
    """Which images."""

    source: str = Field("demo", description="parquet or image folder, file, hub name, or demo")
    config: str | None = Field(None, description="configuration of a hub data set")
    revision: str | None = Field(None, description="revision of a hub data set")
    image_column: str | None = Field(None, description="null: found by its usual names")
    label_column: str | None = Field(None, description="null: found by its usual names")
    splits: SplitsConfig = SplitsConfig()
    max_unreadable: float = Field(0.01, ge=0, le=1, description="share of images that may be skipped as unreadable")
    num_workers: int = Field(0, ge=0, description="processes that decode images")
