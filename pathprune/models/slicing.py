"""A classifier that answers for some of its classes only."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pathprune.models.architecture import Architecture
from pathprune.models.loading import LoadedModel


def slice_head(loaded: LoadedModel, classes: Sequence[int]) -> LoadedModel:
    """A copy of the model whose head has the rows of these classes alone, in this order; their names go with them.

    Its logits are those of the whole model at `classes`. Raises ValueError for a model whose classifier timm does not
    know, or is not linear.
    """
    model: Any = copy.deepcopy(loaded.model)
    known = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = (known,) if isinstance(known, str) else tuple(known)
    heads = [(name, model.get_submodule(name)) for name in names if hasattr(model, name)]
    if not heads or not all(isinstance(head, nn.Linear) for _, head in heads):
        raise ValueError(
            f"the head of this {type(model).__name__} cannot be sliced: it is no linear classifier that timm names; "
            "leave out model.slice_head"
        )
    for name, head in heads:
        model.set_submodule(name, _rows(head, classes))
    model.num_classes = len(classes)
    class_names = loaded.class_names and tuple(loaded.class_names[index] for index in classes)
    return replace(loaded, model=model, class_names=class_names, architecture=Architecture.of(model))


def _rows(head: nn.Linear, classes: Sequence[int]) -> nn.Linear:
    sliced = nn.Linear(head.in_features, len(classes), bias=head.bias is not None, device="meta")
    with torch.no_grad():
        sliced.weight = nn.Parameter(head.weight[list(classes)].clone())
        if head.bias is not None:
            sliced.bias = nn.Parameter(head.bias[list(classes)].clone())
    return sliced.train(head.training)
