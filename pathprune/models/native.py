"""Keys of `config.json` with which other libraries load a pruned checkpoint without pathprune.

timm and Transformers have one MLP width for all blocks. They can build a pruned model only if all its blocks have the
same number of neurons, as after `scope: uniform`. Transformers loads timm's models too, through timm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pathprune.models.adapt import adapt
from pathprune.models.pruned_config import PrunedConfig
from pathprune.models.seam import AdaptedModel
from pathprune.models.transformers_config import read_config_args
from pathprune.models.transformers_vit import unwrap
from pathprune.models.weights import CheckpointError

_MODEL_KEYS = ("first_conv", "classifier", "fixed_input_size")  # keys of pretrained_cfg that timm's loader reads
_UNREAD_HEAD = ("vision_model.head.",)  # SigLIP classifiers contain the tower's head without using it
_GATED_RATIO = 2 / 3  # Transformers' DINOv2 scales the width of gated MLPs by this factor

Shapes = Mapping[str, torch.Size]
"""Shapes of a state dict by name."""


def find_native_keys(model: nn.Module, config: PrunedConfig, *, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the keys with which the model's library can load `tensors`; empty if it cannot build the model."""
    find_keys = _find_timm_keys if config.base.library == "timm" else _find_transformers_keys
    return find_keys(adapt(model, check=False), config, {name: tensor.shape for name, tensor in tensors.items()})


def _find_timm_keys(adapted: AdaptedModel, config: PrunedConfig, shapes: Shapes) -> dict[str, Any]:
    """Return the keys for `timm.create_model("local-dir:…")`."""
    base = config.base
    for ratio in _list_timm_ratios(adapted):
        args = {**base.args, "mlp_ratio": ratio}
        try:
            with torch.device("meta"):
                candidate: Any = timm.create_model(base.name, **args)
        except (TypeError, ValueError, RuntimeError, AssertionError):
            return {}
        if _read_shapes(candidate) == shapes:
            model_keys = {key: value for key in _MODEL_KEYS if (value := candidate.pretrained_cfg.get(key)) is not None}
            names = {} if config.class_names is None else {"label_names": list(config.class_names)}
            return {
                "architecture": base.name,
                "num_classes": candidate.num_classes,
                **names,
                "model_args": {key: value for key, value in args.items() if key != "num_classes"},
                "pretrained_cfg": {**model_keys, **config.data_config, "num_classes": candidate.num_classes},
            }
    return {}


def _find_transformers_keys(adapted: AdaptedModel, config: PrunedConfig, shapes: Shapes) -> dict[str, Any]:
    """Return the keys for `from_pretrained` of the model's class."""
    base = config.base
    for keys in _list_width_keys(adapted, base.args.get("vision_config", base.args)):
        inner = {"vision_config": {**base.args["vision_config"], **keys}} if "vision_config" in base.args else keys
        narrow = replace(base, args={**base.args, **inner})
        try:
            with torch.device("meta"):
                candidate: Any = narrow.build(data_config=config.data_config, class_names=config.class_names)
        except CheckpointError:  # a ratio that is no integer, which DINOv2's config refuses
            continue
        unread = _UNREAD_HEAD if keys.get("vision_use_head") is False else ()
        needed = {name: size for name, size in shapes.items() if not name.startswith(unread)}
        if _read_shapes(unwrap(candidate)) == needed:
            return {**read_config_args(candidate), "architectures": [base.name]}
    return {}


def _list_timm_ratios(adapted: AdaptedModel) -> Iterator[float]:
    """Yield values of timm's `mlp_ratio` that may give the model's width, for plain and for packed gated MLPs."""
    for num_packed in (1, 2):
        ratios = {num_packed * site.width / site.down.out_features for site in adapted.sites}
        if len(ratios) == 1:
            (ratio,) = ratios
            yield ratio
            yield ratio + 0.5 / adapted.sites[0].down.out_features  # timm truncates: avoid a width that is one too low


def _list_width_keys(adapted: AdaptedModel, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield keys of a Transformers config that may give the model's width, absolute or relative to the hidden size."""
    sizes = {(site.width, site.down.out_features) for site in adapted.sites}
    if len(sizes) != 1:
        return
    ((width, hidden_size),) = sizes
    if "mlp_ratio" not in config:
        yield {"intermediate_size": width}
        if adapted.num_classes and config.get("vision_use_head"):
            yield {"intermediate_size": width, "vision_use_head": False}
        return
    for ratio in (width / hidden_size, width / _GATED_RATIO / hidden_size):
        yield {"mlp_ratio": int(ratio) if ratio.is_integer() else ratio}


def _read_shapes(model: Any) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
