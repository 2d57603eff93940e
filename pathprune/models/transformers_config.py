"""Architectures of Transformers models as plain data, and their preprocessing in timm's terms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pathprune.models.transformers_vit import TransformersModel, find_classifier, read_input_size
from pathprune.models.weights import CheckpointError, one_line

_NOT_ARCHITECTURE = ("_name_or_path", "transformers_version")  # keys of a config that describe its file
_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers


def import_transformers() -> Any:
    """Import Transformers, an optional dependency; raise `CheckpointError` if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError("this model needs Transformers: pip install 'pathprune[hf]'") from error
    return transformers


def read_config_args(model: TransformersModel) -> dict[str, Any]:
    """Return the model's config as JSON data."""
    hf_model: Any = model.model
    args: dict[str, Any] = json.loads(hf_model.config.to_json_string(use_diff=False))
    return {key: value for key, value in args.items() if key not in _NOT_ARCHITECTURE}


def build_transformers(
    name: str, args: Mapping[str, Any], *, data_config: Mapping[str, Any], class_names: Sequence[str] | None
) -> TransformersModel:
    """Build the dense model of the class `name` with random weights on the CPU.

    Only classes of Transformers itself are built: code that a config names is never run.
    """
    library = import_transformers()
    attribute = getattr(library, name, None)
    if not (isinstance(attribute, type) and issubclass(attribute, library.PreTrainedModel)):
        raise CheckpointError(f"Transformers {library.__version__} has no model class {name}")
    kind: Any = attribute
    try:
        config = kind.config_class.from_dict(dict(args))
        if class_names is not None:
            config.id2label = dict(enumerate(class_names))
            config.label2id = {label: index for index, label in config.id2label.items()}
        with torch.random.fork_rng(devices=[]):
            model = kind(config)
    except Exception as error:  # errors of a config's own validation have no common base class
        raise CheckpointError(f"Transformers cannot make {name} from its config: {one_line(error)}") from error
    return TransformersModel(model, data_config=data_config).eval()


def read_labels(model: TransformersModel) -> tuple[str, ...] | None:
    """Return the class names; None if there is no classifier or if they are Transformers' placeholders."""
    classifier, config = find_classifier(model.model), getattr(model.model, "config", None)
    if classifier is None or config is None:
        return None
    labels = config.id2label
    names = tuple(str(labels.get(index, f"LABEL_{index}")) for index in range(classifier.out_features))
    return None if any(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def translate_processor(processor: Mapping[str, Any], model: TransformersModel) -> dict[str, Any]:
    """Translate the settings of an image processor into arguments of `timm.data.create_transform`.

    The image size is the model's.
    """
    channels, height, width = read_input_size(model)
    size = processor.get("size") or {}
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    edge = size.get("shortest_edge", size.get("height"))
    is_normalized = processor.get("do_normalize", True)
    return {
        "input_size": (channels, height, width),
        "mean": tuple(processor["image_mean"]) if is_normalized else (0.0,) * channels,
        "std": tuple(processor["image_std"]) if is_normalized else (1.0,) * channels,
        "interpolation": _INTERPOLATION.get(processor.get("resample", 2), "bilinear"),
        "crop_pct": crop["height"] / edge if crop and edge else 1.0,
        "crop_mode": "center" if "shortest_edge" in size else "squash",
    }
