"""Classifiers restricted to some of their classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pathprune.models.architecture import Architecture, list_classifiers
from pathprune.models.loading import LoadedModel


def slice_head(loaded: LoadedModel, classes: Sequence[int]) -> LoadedModel:
    """Return a copy of the model with a head for `classes` only, in this order, and their names.

    Its logits are those of the original model at `classes`. Raises ValueError if timm does not name the classifier or
    the classifier is not linear.
    """
    model: Any = copy.deepcopy(loaded.model)
    heads = {name: model.get_submodule(name) for name in list_classifiers(model) if hasattr(model, name)}
    if not heads or not all(isinstance(head, nn.Linear) for head in heads.values()):
        raise ValueError(
            f"the head of this {type(model).__name__} cannot be sliced: timm names no linear classifier for it; remove "
            "model.slice_head"
        )
    for name, head in heads.items():
        model.set_submodule(name, _slice_rows(head, classes))
    model.num_classes = len(classes)
    class_names = loaded.class_names and tuple(loaded.class_names[index] for index in classes)
    return replace(loaded, model=model, class_names=class_names, architecture=Architecture.of(model))


def _slice_rows(head: nn.Linear, classes: Sequence[int]) -> nn.Linear:
    sliced = nn.Linear(head.in_features, len(classes), bias=head.bias is not None, device="meta")
    with torch.no_grad():
        sliced.weight = nn.Parameter(head.weight[list(classes)].clone())
        if head.bias is not None:
            sliced.bias = nn.Parameter(head.bias[list(classes)].clone())
    return sliced.train(head.training)
