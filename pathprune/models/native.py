"""The keys of `config.json` by which other libraries load a pruned checkpoint without pathprune.

timm and Transformers have one MLP width for all blocks: they can build the model where every block kept as many of its
neurons as the others, as `scope: uniform` leaves it, and no other. timm's models are Transformers' too, through timm.
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
from pathprune.models.transformers_config import config_args
from pathprune.models.transformers_vit import unwrapped
from pathprune.models.weights import CheckpointError

_OF_THE_MODEL = ("first_conv", "classifier", "fixed_input_size")  # what timm's loader reads of a pretrained_cfg
_UNREAD_HEAD = ("vision_model.head.",)  # SigLIP's classifiers carry the tower's head, and do not read it
_GATED = 2 / 3  # of the width that the ratio says, in Transformers' DINOv2


def library_keys(model: nn.Module, config: PrunedConfig, *, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keys with which the library of the model loads `tensors`; empty where it cannot build a model for them."""
    keys = _timm_keys if config.base.library == "timm" else _transformers_keys
    return keys(adapt(model, check=False), config, {name: tensor.shape for name, tensor in tensors.items()})


def _timm_keys(adapted: AdaptedModel, config: PrunedConfig, shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    """For `timm.create_model("local-dir:…")`."""
    base = config.base
    for ratio in _mlp_ratios(adapted):
        args = {**base.args, "mlp_ratio": ratio}
        try:
            with torch.device("meta"):
                built: Any = timm.create_model(base.name, **args)
        except (TypeError, ValueError, RuntimeError, AssertionError):
            return {}
        if _shapes(built) == shapes:
            own = {key: value for key in _OF_THE_MODEL if (value := built.pretrained_cfg.get(key)) is not None}
            names = {} if config.class_names is None else {"label_names": list(config.class_names)}
            return {
                "architecture": base.name,
                "num_classes": built.num_classes,
                **names,
                "model_args": {key: value for key, value in args.items() if key != "num_classes"},
                "pretrained_cfg": {**own, **config.data_config, "num_classes": built.num_classes},
            }
    return {}


def _transformers_keys(adapted: AdaptedModel, config: PrunedConfig, shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    """For `from_pretrained` of the model's class."""
    base = config.base
    for width in _widths(adapted, base.args.get("vision_config", base.args)):
        inner = {"vision_config": {**base.args["vision_config"], **width}} if "vision_config" in base.args else width
        narrow = replace(base, args={**base.args, **inner})
        try:
            with torch.device("meta"):
                built: Any = narrow.build(data_config=config.data_config, class_names=config.class_names)
        except CheckpointError:  # DINOv2's ratio must be an integer
            continue
        unread = _UNREAD_HEAD if width.get("vision_use_head") is False else ()
        if _shapes(unwrapped(built)) == {name: shape for name, shape in shapes.items() if not name.startswith(unread)}:
            return {**config_args(built), "architectures": [base.name]}
    return {}


def _mlp_ratios(adapted: AdaptedModel) -> Iterator[float]:
    """What timm's `mlp_ratio` could be: plain and packed gated MLPs, rounded down by timm."""
    for layers in (1, 2):
        ratios = {layers * site.width / site.down.out_features for site in adapted.sites}
        if len(ratios) == 1:
            (ratio,) = ratios
            yield ratio
            yield ratio + 0.5 / adapted.sites[0].down.out_features  # where the ratio is rounded to below the width


def _widths(adapted: AdaptedModel, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the config could say of the MLP's width: the width, or how many times that of the states it is."""
    sizes = {(site.width, site.down.out_features) for site in adapted.sites}
    if len(sizes) != 1:
        return
    ((width, size),) = sizes
    if "mlp_ratio" not in config:
        yield {"intermediate_size": width}
        if adapted.num_classes and config.get("vision_use_head"):
            yield {"intermediate_size": width, "vision_use_head": False}
        return
    for ratio in (width / size, width / _GATED / size):
        yield {"mlp_ratio": int(ratio) if ratio.is_integer() else ratio}


def _shapes(model: Any) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
