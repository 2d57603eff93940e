"""The model section of a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from pathprune.section import Section

# arguments of timm.data.create_transform
_DATA_CONFIG = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")


class ModelConfig(Section):
    """The model and the source of its weights."""

    name: str = Field("demo", description="timm or hf-hub: name, a folder that a library saved, or demo")
    checkpoint: str | None = Field(None, description="file or folder of weights; null: the weights of the name")
    pretrained: bool = Field(True, description="without a checkpoint, download pretrained weights")
    num_classes: int | None = Field(None, ge=0, description="size of the head; 0: no head; null: as in the checkpoint")
    image_size: int | None = Field(None, ge=1, description="input size in pixels; null: the model's own")
    slice_head: bool = Field(False, description="with `classes`: remove all other classes from the head")
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of timm.create_model")
    data_config: dict[str, Any] = Field(
        default_factory=dict, description="preprocessing that the checkpoint does not state: mean, std, interpolation …"
    )

    @field_validator("data_config")
    @classmethod
    def _check_data_config(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, setting in value.items():
            if key not in _DATA_CONFIG:
                raise ValueError(f"unknown key '{key}'; choose from {', '.join(_DATA_CONFIG)}")
            if key in ("input_size", "mean", "std") and not (isinstance(setting, list | tuple) and len(setting) == 3):
                raise ValueError(f"{key} is {setting!r}; give three numbers")
            if key == "interpolation" and setting not in _INTERPOLATIONS:
                raise ValueError(f"interpolation is '{setting}'; choose from {', '.join(_INTERPOLATIONS)}")
        return {key: tuple(setting) if isinstance(setting, list) else setting for key, setting in value.items()}
