"""The keys of `config.json` by which timm, and Transformers through timm, load a pruned checkpoint without pathprune.

timm has one `mlp_ratio` for all blocks: it can build the model where every block kept the same share of its neurons, as
`scope: uniform` leaves it, and no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor

from pathprune.models.adapt import adapt
from pathprune.models.architecture import Architecture

_OF_THE_MODEL = ("first_conv", "classifier", "fixed_input_size")  # what timm's loader reads of a pretrained_cfg


def timm_keys(
    model: Any,
    base: Architecture,
    *,
    tensors: Mapping[str, Tensor],
    data_config: Mapping[str, Any],
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """The keys for `timm.create_model("local-dir:…")`; empty where timm cannot build a model for these `tensors`."""
    if base.library != "timm":
        return {}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for ratio in _mlp_ratios(model):
        args = {**base.args, "mlp_ratio": ratio}
        try:
            with torch.device("meta"):
                built: Any = timm.create_model(base.name, **args)
        except (TypeError, ValueError, RuntimeError, AssertionError):
            return {}
        if {name: tensor.shape for name, tensor in built.state_dict().items()} == shapes:
            own = {key: value for key in _OF_THE_MODEL if (value := built.pretrained_cfg.get(key)) is not None}
            names = {} if class_names is None else {"label_names": list(class_names)}
            return {
                "architecture": base.name,
                "num_classes": built.num_classes,
                **names,
                "model_args": {key: value for key, value in args.items() if key != "num_classes"},
                "pretrained_cfg": {**own, **data_config, "num_classes": built.num_classes},
            }
    return {}


def _mlp_ratios(model: Any) -> Iterator[float]:
    """What `mlp_ratio` could be: plain and packed gated MLPs, rounded down by timm."""
    sites = adapt(model, check=False).sites
    for layers in (1, 2):
        ratios = {layers * site.width / site.down.out_features for site in sites}
        if len(ratios) == 1:
            (ratio,) = ratios
            yield ratio
            yield ratio + 0.5 / sites[0].down.out_features  # where the ratio is rounded to below the width
