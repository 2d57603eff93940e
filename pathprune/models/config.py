"""Which model, as a recipe says it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from pathprune.section import Section

# of timm.data.create_transform
_DATA_CONFIG = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")


class ModelConfig(Section):
    """Which model, and where its weights come from."""

    name: str = Field("demo", description="timm or hf-hub: name, a folder that a library saved, or demo")
    checkpoint: str | None = Field(None, description="weights: a file or folder of them; null: those of the name")
    pretrained: bool = Field(True, description="fetch pretrained weights where no checkpoint is given")
    num_classes: int | None = Field(None, ge=0, description="size of the head; 0: none; null: as the checkpoint has it")
    image_size: int | None = Field(None, ge=1, description="input size in pixels; null: the model's own")
    slice_head: bool = Field(False, description="with `classes`: leave the other classes out of the head")
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of timm.create_model")
    data_config: dict[str, Any] = Field(
        default_factory=dict, description="what the checkpoint does not say of its images: mean, std, interpolation …"
    )

    @field_validator("data_config")
    @classmethod
    def _of_timm(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, setting in value.items():
            if key not in _DATA_CONFIG:
                raise ValueError(f"unknown key '{key}'; choose from {', '.join(_DATA_CONFIG)}")
            if key in ("input_size", "mean", "std") and not (isinstance(setting, list | tuple) and len(setting) == 3):
                raise ValueError(f"{key} is {setting!r}; it takes three numbers")
            if key == "interpolation" and setting not in _INTERPOLATIONS:
                raise ValueError(f"interpolation is '{setting}'; choose from {', '.join(_INTERPOLATIONS)}")
        return {key: tuple(setting) if isinstance(setting, list) else setting for key, setting in value.items()}
