"""Load a Transformers model with its weights: from a folder of `save_pretrained` or a Trainer, or from the hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathprune.models.transformers_config import timm_data_config, transformers_library
from pathprune.models.transformers_vit import TransformersModel, input_size_of
from pathprune.models.weights import CheckpointError, fill_weights

log = logging.getLogger(__name__)

_TOWERS = {"CLIPModel": "CLIPVisionModelWithProjection", "SiglipModel": "SiglipVisionModel"}  # the vision tower alone


def load_transformers(
    source: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> TransformersModel:
    """Load a model from a folder, or from the hub, `owner/name` or `owner/name@revision`: on the CPU, in float32.

    With `state` the source says what to build, and these are the weights. `model_args` are keys of the config. A head
    of another size than `num_classes` is refused, except that weights from the hub get a new one, with a warning.
    """
    library = transformers_library()
    if num_classes == 0:
        raise CheckpointError("num_classes=0 is for timm models; of Transformers take a class without a head")
    from_hub = isinstance(source, str) and pretrained and state is None
    config = _read_config(library, source)
    for key, value in (model_args or {}).items():
        if not hasattr(config, key):
            raise CheckpointError(f"model argument '{key}' is none of the keys of a {type(config).__name__}")
        try:
            setattr(config, key, value)
        except Exception as error:  # as in _read_config
            raise CheckpointError(f"model argument {key}={value!r} cannot be: {_line(error)}") from error
    stored = config.num_labels = _head_size(state) or config.num_labels
    if num_classes is not None and num_classes != stored:
        if not from_hub and (pretrained or state is not None):
            raise CheckpointError(
                f"{source} has a head of {stored} classes, num_classes asks for {num_classes}; leave out num_classes, "
                "or train a new head first"
            )
        config.num_labels = num_classes
    kind = _class_of(library, config)
    model = _build(library, kind, config, source, weights=pretrained and state is None)
    made = TransformersModel(model)
    if from_hub and num_classes not in (None, stored):
        log.warning("%s has weights for %s classes: its head for %d is new and untrained", source, stored, num_classes)
    if image_size is not None and image_size != input_size_of(made)[1:]:
        height, width = input_size_of(made)[1:]
        raise CheckpointError(
            f"{source} takes images of {height} × {width} px, not {image_size[0]} × {image_size[1]}, and Transformers "
            "models are not resized; leave out image_size"
        )
    if state is not None:
        fill_weights(model, state, source="the checkpoint", advice=f"they should be those of a {kind.__name__}")
    made.data_config = timm_data_config(_processor(library, source), made)
    return made


def _head_size(state: Mapping[str, Tensor] | None) -> int | None:
    """The number of classes that the weights are for, where they have a head."""
    weight = (state or {}).get("classifier.weight", (state or {}).get("cls_classifier.weight"))
    return None if weight is None else len(weight)


def _where(source: str | Path) -> dict[str, Any]:
    """A folder or a name and revision on the hub, as Transformers takes them."""
    name, _, revision = (str(source), "", "") if isinstance(source, Path) else source.partition("@")
    return {"pretrained_model_name_or_path": name, "revision": revision or "main"}


def _read_config(library: Any, source: str | Path) -> Any:
    try:
        return library.AutoConfig.from_pretrained(**_where(source), trust_remote_code=False)
    except Exception as error:  # the config's own checks raise errors that derive from nothing else
        raise CheckpointError(f"Transformers cannot read the config of {source}: {_line(error)}") from error


def _class_of(library: Any, config: Any) -> Any:
    """The class that the config names; the vision tower of a model that has a text tower too."""
    name = (config.architectures or [None])[0]
    kind = getattr(library, _TOWERS.get(name, name or ""), None)
    if kind is None:
        raise CheckpointError(
            f"the config names {'no class' if name is None else name + ', which Transformers does not have'}; save the "
            "model again with save_pretrained"
        )
    return kind


def _build(library: Any, kind: Any, config: Any, source: str | Path, *, weights: bool) -> nn.Module:
    if kind.__name__ in _TOWERS.values() and hasattr(config, "vision_config"):
        config = config.vision_config
    try:
        if not weights:
            model: nn.Module = kind(config)
            return model
        model, found = kind.from_pretrained(
            **_where(source),
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"no weights for {source}: the hub cannot be reached or does not have them ({_line(error)})"
            if isinstance(source, str)
            else f"Transformers cannot load {source}: {_line(error)}"
        ) from error
    reshaped = {key for key, *_ in found["mismatched_keys"]}
    head = {name for name in (*reshaped, *found["missing_keys"]) if "classifier" in name}
    lacking = sorted({*found["missing_keys"], *reshaped} - (head if isinstance(source, str) else set()))
    if lacking:
        raise CheckpointError(
            f"{source} has no fitting weights for {', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''} of a "
            f"{kind.__name__}; train them first"
        )
    return model


def _processor(library: Any, source: str | Path) -> Mapping[str, Any]:
    """The settings of the image processor that was saved beside the weights."""
    try:
        settings: dict[str, Any]
        settings, _ = library.ImageProcessingMixin.get_image_processor_dict(**_where(source))
        return settings
    except OSError:
        log.warning(
            "%s has no preprocessor_config.json: a mean and standard deviation of 0.5 are assumed; where that is "
            "wrong, set model.data_config",
            source,
        )
        return {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "resample": 3}


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
