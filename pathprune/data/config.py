"""The `data` section of a recipe."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pathprune.section import Section

# suffixes of files; hub names may contain dots, so that any other suffix can be part of one
_FILES = (".parquet", ".arrow", ".csv", ".json", ".jsonl", ".zip", ".tar", ".gz", ".npz")


def is_missing(source: str) -> bool:
    """Return True if a data source can only be a path, at which there is nothing: it is no name on the hub."""
    path = Path(source).expanduser()
    is_path = source.startswith((".", "/", "~")) or path.suffix.lower() in _FILES or source.count("/") > 1
    return is_path and not path.exists()


def explain_missing(source: str) -> str:
    """Return the error for a missing data source."""
    return f"data source '{source}' does not exist; give a folder, a parquet file, a hub name or 'demo'"


class SplitsConfig(Section):
    """Split of each use, in the syntax of `datasets`: train, train[:1000], test[50%:].

    No evaluation or validation image may occur in a split of another use.
    """

    mine: str = Field("train", description="Images whose neuron paths are located.")
    calibrate: str = Field("train", description="Images for activation statistics, gradients and fits.")
    train: str = Field("train", description="Images to train on.")
    validation: str | None = Field(
        None, description="Images for prune.max_drop and for the best weights of a training. null: none."
    )
    evaluate: str = Field("test", description="Images for the reported accuracy.")


class DataConfig(Section):
    """Images and their labels."""

    source: str = Field(
        "demo",
        description="Data source: demo (embedded CIFAR-10 images), a parquet file, a folder of parquet files, an image "
        "folder, a folder written by save_to_disk, or a name on the Hugging Face hub.",
    )
    config: str | None = Field(None, description="Configuration of the data set on the hub.")
    revision: str | None = Field(None, description="Revision of the data set on the hub.")
    image_column: str | None = Field(
        None, description="Column of the images. null: image, img, pixel_values, jpg or png."
    )
    label_column: str | None = Field(None, description="Column of the labels. null: label, labels, fine_label or cls.")
    splits: SplitsConfig = SplitsConfig()
    max_unreadable: float = Field(
        0.01, ge=0, le=1, description="Fraction of images that may be unreadable. They are skipped and counted."
    )
    num_workers: int = Field(
        0, ge=0, description="Processes that decode images. 0: decode in the main process; for photographs try 4 to 8."
    )

    def check_paths(self) -> None:
        """Raise ValueError if the source is a path at which there is nothing."""
        if is_missing(self.source):
            raise ValueError(explain_missing(self.source))
