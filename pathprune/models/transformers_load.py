"""Loading of Transformers models with their weights, from a folder of `save_pretrained` or a Trainer, or a hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathprune.models.transformers_config import import_transformers, translate_processor
from pathprune.models.transformers_vit import TransformersModel, read_input_size
from pathprune.models.weights import CheckpointError, fill_weights, one_line

log = logging.getLogger(__name__)

# classes with a text tower -> the class of their vision tower alone
_TOWERS = {"CLIPModel": "CLIPVisionModelWithProjection", "SiglipModel": "SiglipVisionModel"}


def load_transformers(
    source: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> TransformersModel:
    """Load a model on the CPU in float32 from a folder, or from the hub: `owner/name` or `owner/name@revision`.

    `state` replaces the weights of the source. `model_args` are keys of the config. `num_classes` must be that of the
    weights, except that weights from the hub get a new head with a warning.
    """
    library = import_transformers()
    if num_classes == 0:
        raise CheckpointError(
            "num_classes=0 is for timm models; save a Transformers model without its head as a class that has none"
        )
    loads_hub_weights = isinstance(source, str) and pretrained and state is None
    config = _read_config(library, source)
    _set_keys(config, model_args or {})
    num_stored = config.num_labels = _count_classes(state) or config.num_labels
    if num_classes is not None and num_classes != num_stored:
        if not loads_hub_weights and (pretrained or state is not None):
            raise CheckpointError(
                f"{source} has a head of {num_stored} classes, num_classes asks for {num_classes}; remove num_classes, "
                "or train a new head first"
            )
        config.num_labels = num_classes
    kind = _find_class(library, config)
    inner = _build(kind, config, source) if state is not None or not pretrained else _load(kind, config, source)
    model = TransformersModel(inner)
    if loads_hub_weights and num_classes not in (None, num_stored):
        log.warning(
            "%s has weights for %s classes: its head for %d is new and untrained", source, num_stored, num_classes
        )
    _, *own_size = read_input_size(model)
    if image_size is not None and list(image_size) != own_size:
        raise CheckpointError(
            f"{source} takes images of {own_size[0]} × {own_size[1]} px, not {image_size[0]} × {image_size[1]}, and "
            "Transformers models are not resized; remove image_size"
        )
    if state is not None:
        fill_weights(inner, state, source="the checkpoint", advice=f"pass weights of a {kind.__name__}")
    model.data_config = translate_processor(_read_processor(library, source), model)
    return model


def _set_keys(config: Any, model_args: Mapping[str, Any]) -> None:
    """Set keys of a config in place."""
    for key, value in model_args.items():
        if not hasattr(config, key):
            raise CheckpointError(f"model argument '{key}' is not a key of {type(config).__name__}")
        try:
            setattr(config, key, value)
        except Exception as error:  # errors of a config's own validation have no common base class
            raise CheckpointError(f"model argument {key}={value!r} is invalid: {one_line(error)}") from error


def _count_classes(state: Mapping[str, Tensor] | None) -> int | None:
    """Return the number of classes that the weights have a head for; None if they have no head."""
    weight = (state or {}).get("classifier.weight", (state or {}).get("cls_classifier.weight"))
    return None if weight is None else len(weight)


def _locate(source: str | Path) -> dict[str, Any]:
    """Return a folder, or a name and revision on the hub, as arguments of `from_pretrained`."""
    name, _, revision = (str(source), "", "") if isinstance(source, Path) else source.partition("@")
    return {"pretrained_model_name_or_path": name, "revision": revision or "main"}


def _read_config(library: Any, source: str | Path) -> Any:
    try:
        return library.AutoConfig.from_pretrained(**_locate(source), trust_remote_code=False)
    except Exception as error:  # errors of a config's own validation have no common base class
        raise CheckpointError(f"Transformers cannot read the config of {source}: {one_line(error)}") from error


def _find_class(library: Any, config: Any) -> Any:
    """Return the class that the config names; for a model that also has a text tower, that of its vision tower."""
    name = (config.architectures or [None])[0]
    kind = getattr(library, _TOWERS.get(name, name or ""), None)
    if kind is None:
        raise CheckpointError(
            f"the config names {'no class' if name is None else name + ', which Transformers does not have'}; save the "
            "model again with save_pretrained"
        )
    return kind


def _select_config(kind: Any, config: Any) -> Any:
    """Return the part of the config that `kind` is built from: a vision tower has its own."""
    is_tower = kind.__name__ in _TOWERS.values() and hasattr(config, "vision_config")
    return config.vision_config if is_tower else config


def _build(kind: Any, config: Any, source: str | Path) -> nn.Module:
    """Build the model with random weights."""
    try:
        model: nn.Module = kind(_select_config(kind, config))
        return model
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"Transformers cannot build the model of {source}: {one_line(error)}") from error


def _load(kind: Any, config: Any, source: str | Path) -> nn.Module:
    """Load the model with the weights of the source; only weights from the hub may lack a fitting head."""
    try:
        model, info = kind.from_pretrained(
            **_locate(source),
            config=_select_config(kind, config),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"no weights for {source}: the hub cannot be reached or does not have them ({one_line(error)})"
            if isinstance(source, str)
            else f"Transformers cannot load {source}: {one_line(error)}"
        ) from error
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    head = {name for name in (*mismatched, *info["missing_keys"]) if "classifier" in name}
    missing = sorted({*info["missing_keys"], *mismatched} - (head if isinstance(source, str) else set()))
    if missing:
        raise CheckpointError(
            f"{source} has no matching weights for {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''} of a "
            f"{kind.__name__}; train them first"
        )
    loaded: nn.Module = model
    return loaded


def _read_processor(library: Any, source: str | Path) -> Mapping[str, Any]:
    """Read the settings of the image processor that was saved with the weights."""
    try:
        settings: dict[str, Any]
        settings, _ = library.ImageProcessingMixin.get_image_processor_dict(**_locate(source))
        return settings
    except OSError:
        log.warning(
            "%s has no preprocessor_config.json: assuming a mean and standard deviation of 0.5; set model.data_config "
            "if the model was trained with others",
            source,
        )
        return {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "resample": 3}
