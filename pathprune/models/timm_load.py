"""Loading of timm models with weights from the hub, from a file of any common layout, or at random."""

from __future__ import annotations

import importlib
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
from timm.models import is_model
from torch import Tensor, nn

from pathprune.models.architecture import explain_unknown_name, list_classifiers, read_pretrained_cfg
from pathprune.models.weights import CheckpointError, fill_weights, read_weights

log = logging.getLogger(__name__)

_TRANSFORMERS_SUFFIXES = (".layernorm_before.weight", ".attention.q_proj.weight", ".self_attn.q_proj.weight")


def load_timm(name: str, args: Mapping[str, Any], *, weights: Path | None, pretrained: bool) -> nn.Module:
    """Load a timm model by its name, `hf-hub:owner/model` or `local-dir:PATH`.

    The parameters come from the file `weights` if given, else from the hub if `pretrained`, else they are random.
    """
    if not name.startswith(("hf-hub:", "local-dir:")) and not is_model(name.partition(".")[0]):
        raise CheckpointError(explain_unknown_name(name))
    if weights is not None:
        load_file = _load_jax_file if weights.suffix == ".npz" else _load_torch_file
        model: nn.Module = load_file(name, args, weights)
        return model
    model = _create_model(name, args, pretrained=pretrained)
    in_weights, in_args = read_pretrained_cfg(model).get("num_classes"), args.get("num_classes")
    if pretrained and in_args and in_weights != in_args:
        log.warning("%s has weights for %s classes: its head for %d is new and untrained", name, in_weights, in_args)
    return model


def _load_torch_file(name: str, args: Mapping[str, Any], weights: Path) -> Any:
    """Build a model and load a file into it; sizes that are not in `args` come from the weights."""
    state = read_weights(weights)
    if "class_embedding" in state and "conv1.weight" in state:
        # the vision tower of OpenCLIP without its prefix, by which timm recognises it
        state = {f"visual.{name}": tensor for name, tensor in state.items()}
    model = _create_model(name, args)
    inferred = {key: value for key, value in _infer_sizes(model, state).items() if key not in args}
    if inferred:
        model = _create_model(name, {**args, **inferred})
    if args.get("num_classes") == 0:
        heads = tuple(f"{head}." for head in _head_names(model))
        state = {name: tensor for name, tensor in state.items() if not name.startswith(heads)}
    _check_head(weights, in_weights=_count_classes(model, state), in_args=args.get("num_classes"))
    # timm's own translation of checkpoints in other layouts; resizes position embeddings too
    translate = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    if translate is not None:
        state = translate(state, model)
    advice = "check the model's name, num_classes and image_size"
    if any(name.endswith(_TRANSFORMERS_SUFFIXES) for name in state):
        advice = "these are names of Transformers: pass the folder that save_pretrained wrote as the model's name"
    fill_weights(model, state, source=str(weights), advice=advice)
    return model


def _load_jax_file(name: str, args: Mapping[str, Any], weights: Path) -> Any:
    """Build a model and let timm load an original `.npz` into it, which resizes position embeddings."""
    try:
        with np.load(weights, allow_pickle=False) as file:
            head_shapes = [file[key].shape for key in file.files if key.endswith("head/bias")]
            blocks = {match[1] for key in file.files if (match := re.search(r"/encoderblock_(\d+)", key))}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {weights} as an .npz file: {_first_line(error)}") from error
    in_weights, in_args = next((shape[-1] for shape in head_shapes), None), args.get("num_classes")
    if in_args != 0:
        _check_head(weights, in_weights=in_weights, in_args=in_args)
    model: Any = _create_model(
        name, args if in_weights is None or in_args is not None else {**args, "num_classes": in_weights}
    )
    if blocks and len(blocks) != len(model.blocks):
        raise CheckpointError(
            f"{weights} has {len(blocks)} blocks, the model {len(model.blocks)}; check the model's name"
        )
    try:
        model.load_pretrained(weights)
    except (KeyError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        raise CheckpointError(
            f"timm cannot read {weights} into {name}: {_first_line(error)}; check the model's name"
        ) from error
    if in_weights is None and model.num_classes:
        log.warning("%s has no head: the model's head for %d classes is untrained", weights, model.num_classes)
    return model


def _check_head(weights: Path, *, in_weights: int | None, in_args: int | None) -> None:
    if in_weights is not None and in_args is not None and in_weights != in_args:
        raise CheckpointError(
            f"{weights} has a head of {in_weights} classes, num_classes asks for {in_args}; remove num_classes, or "
            "train a new head first"
        )


def _create_model(name: str, args: Mapping[str, Any], *, pretrained: bool = False) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, **args)
    except OSError as error:
        raise CheckpointError(
            f"no weights for '{name}': the hub cannot be reached or does not have them ({_first_line(error)}); if you "
            "have the weights in a file, pass it as checkpoint"
        ) from error
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        with_args = f" with {dict(args)}" if args else ""
        raise CheckpointError(f"timm cannot make '{name}'{with_args}: {_first_line(error)}") from error


def _infer_sizes(model: Any, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return `num_classes` and `img_size` of the weights where they differ from the model's."""
    sizes: dict[str, Any] = {}
    num_classes = _count_classes(model, state)
    if num_classes is not None and num_classes != model.num_classes:
        sizes["num_classes"] = num_classes
    new, own = state.get("pos_embed"), getattr(model, "pos_embed", None)
    if new is not None and own is not None and new.shape[1] != own.shape[1]:
        num_patches = new.shape[1] - (own.shape[1] - model.patch_embed.num_patches)
        side = math.isqrt(max(num_patches, 0))
        if side * side == num_patches:
            sizes["img_size"] = tuple(side * size for size in model.patch_embed.patch_size)
    return sizes


def _count_classes(model: Any, state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes that the weights have a head for; None if they have no head."""
    weight = state.get(f"{_head_names(model)[0]}.weight")
    return None if weight is None else len(weight)


def _head_names(model: Any) -> tuple[str, ...]:
    """Return the names of the model's heads; a distilled model has two."""
    return list_classifiers(model) or ("head",)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
