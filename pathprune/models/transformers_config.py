"""What a Transformers model is built from, as plain data, and the model again from it; its input in timm's words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pathprune.models.transformers_vit import TransformersModel, classifier_of, input_size_of
from pathprune.models.weights import CheckpointError

_OF_THE_FILE = ("_name_or_path", "transformers_version")  # of a config, and no part of the architecture
_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers


def transformers_library() -> Any:
    """Transformers, which is an optional dependency."""
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError("this model needs Transformers: pip install 'pathprune[hf]'") from error
    return transformers


def config_args(model: TransformersModel) -> dict[str, Any]:
    """The config as JSON data."""
    whole: Any = model.model
    args: dict[str, Any] = json.loads(whole.config.to_json_string(use_diff=False))
    return {key: value for key, value in args.items() if key not in _OF_THE_FILE}


def build_transformers(
    name: str, args: Mapping[str, Any], *, data_config: Mapping[str, Any], class_names: Sequence[str] | None
) -> TransformersModel:
    """Make the dense model with random weights, on the CPU, of the class that is called `name`.

    Nothing but Transformers' own classes is made: code that a config names is not run.
    """
    library = transformers_library()
    found = getattr(library, name, None)
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        raise CheckpointError(f"Transformers {library.__version__} has no model class {name}")
    kind: Any = found
    try:
        config = kind.config_class.from_dict(dict(args))
        if class_names is not None:
            config.id2label = dict(enumerate(class_names))
            config.label2id = {label: index for index, label in config.id2label.items()}
        with torch.random.fork_rng(devices=[]):
            model = kind(config)
    except Exception as error:  # the config's own checks raise errors that derive from nothing else
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"Transformers cannot make {name} of its config: {reason}") from error
    return TransformersModel(model, data_config=data_config).eval()


def labels_of(model: TransformersModel) -> tuple[str, ...] | None:
    """The names of the classes, unless they are Transformers' placeholders."""
    classifier, config = classifier_of(model.model), getattr(model.model, "config", None)
    if classifier is None or config is None:
        return None
    labels = config.id2label
    names = tuple(str(labels.get(index, f"LABEL_{index}")) for index in range(classifier.out_features))
    return None if any(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def timm_data_config(processor: Mapping[str, Any], model: TransformersModel) -> dict[str, Any]:
    """The settings of an image processor as `timm.data.create_transform` takes them, for the model's own image size."""
    channels, *size = input_size_of(model)
    resized = processor.get("size") or {}
    resized = {"shortest_edge": resized} if isinstance(resized, int) else resized
    cropped = processor.get("crop_size") if processor.get("do_center_crop") else None
    cropped = {"height": cropped, "width": cropped} if isinstance(cropped, int) else cropped
    edge = resized.get("shortest_edge", resized.get("height"))
    normalised = processor.get("do_normalize", True)
    return {
        "input_size": (channels, *size),
        "mean": tuple(processor["image_mean"]) if normalised else (0.0,) * channels,
        "std": tuple(processor["image_std"]) if normalised else (1.0,) * channels,
        "interpolation": _INTERPOLATION.get(processor.get("resample", 2), "bilinear"),
        "crop_pct": cropped["height"] / edge if cropped and edge else 1.0,
        "crop_mode": "center" if "shortest_edge" in resized else "squash",
    }
