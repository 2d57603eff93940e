"""The `model` section of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, field_validator

from pathprune.section import Section

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
_THREE_NUMBERS: JsonValue = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}

# JSON schemas of the arguments of timm.data.create_transform that a recipe may set
_DATA_CONFIG: dict[str, JsonValue] = {
    "input_size": _THREE_NUMBERS,
    "mean": _THREE_NUMBERS,
    "std": _THREE_NUMBERS,
    "interpolation": {"enum": [*_INTERPOLATIONS]},
    "crop_pct": {"type": "number"},
    "crop_mode": {"enum": ["center", "squash", "border"]},
}


def is_path(name: str) -> bool:
    """Return True if a model's name can only be a folder's path: not a name of timm or of the hub."""
    if name.startswith("hf-hub:"):
        return False
    return name.startswith(("local-dir:", ".", "~")) or "/" in name or "\\" in name


def to_folder(name: str) -> Path:
    """Return the folder that a model's name means, if it means one."""
    return Path(name.removeprefix("local-dir:")).expanduser()


def explain_missing_folder(name: str) -> str:
    """Return the error for a model's name that is the path of a file or of nothing."""
    folder = to_folder(name)
    if folder.is_file():
        return f"{folder} is a file; pass the model's timm name, and the file as checkpoint"
    on_hub = name.count("/") == 1 and not name.startswith(("local-dir:", ".", "~", "/"))
    hint = f"for a model on the hub write hf-hub:{name}" if on_hub else "pass an existing folder"
    return f"folder {folder} does not exist; {hint}"


class ModelConfig(Section):
    """Model and weights."""

    name: str = Field(
        "demo",
        description="Model: demo (a small ViT for CIFAR-10), a timm name, hf-hub:NAME, or a checkpoint folder that "
        "timm, Transformers, a Trainer or pathprune saved.",
    )
    checkpoint: str | None = Field(
        None,
        description="Weights for the model: a .safetensors, .pth, .pt or .npz file, or a folder of one. No code in the "
        "file is run. null: the weights that belong to the name.",
    )
    pretrained: bool = Field(
        True, description="Load the pretrained weights of a timm name. false: random weights, to train from scratch."
    )
    num_classes: int | None = Field(
        None, ge=0, description="Number of classes of the head. 0: no head. null: as in the checkpoint."
    )
    image_size: int | None = Field(None, ge=1, description="Image size in pixels. null: the model's own.")
    slice_head: bool = Field(False, description="Remove all classes but those of the key `classes` from the head.")
    args: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of timm.create_model, such as {depth: 6}."
    )
    data_config: dict[str, Any] = Field(
        default_factory=dict,
        description="Preprocessing, if the checkpoint does not define it: " + ", ".join(_DATA_CONFIG) + ".",
        json_schema_extra={"properties": _DATA_CONFIG, "additionalProperties": False},
    )

    def check_paths(self) -> None:
        """Raise ValueError if the model's folder or its weights do not exist."""
        if is_path(self.name) and not to_folder(self.name).is_dir():
            raise ValueError(explain_missing_folder(self.name))
        if self.checkpoint is not None and not Path(self.checkpoint).expanduser().exists():
            raise ValueError(f"checkpoint {self.checkpoint} does not exist; pass an existing file or folder")

    @field_validator("data_config")
    @classmethod
    def _check_data_config(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, setting in value.items():
            if key not in _DATA_CONFIG:
                raise ValueError(f"unknown key '{key}'; choose from {', '.join(_DATA_CONFIG)}")
            needs_three = _DATA_CONFIG[key] is _THREE_NUMBERS
            if needs_three and not (isinstance(setting, list | tuple) and len(setting) == 3):
                raise ValueError(f"{key} is {setting!r}; give three numbers")
            if key == "interpolation" and setting not in _INTERPOLATIONS:
                raise ValueError(f"interpolation is '{setting}'; choose from {', '.join(_INTERPOLATIONS)}")
        return {key: tuple(setting) if isinstance(setting, list) else setting for key, setting in value.items()}
