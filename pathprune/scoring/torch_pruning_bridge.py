"""Scores by torch-pruning's importances, and scores as a torch-pruning importance.

torch-pruning scores a *group*: all layers that a neuron reaches into. In a plain MLP these are the neuron's row of
`fc1` and its column of `fc2`, averaged (`group_reduction="mean"`). Normalisation per group is off (`normalizer=None`),
so that scores stay on the importance's own scale across blocks. LAMP alone has a normalisation of its own.

Not offered: batch-norm scales, because a ViT's MLP has no batch norm; OBD-C, which reads `fc1` alone; and
torch-pruning's activation importance, which reads the last batch only (`variance` reads all batches).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor

from pathprune.models.graph import TracedMlp, trace_mlp
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.batches import Batches
from pathprune.scoring.gradients import compute_weight_gradients
from pathprune.scoring.scores import Scores, validate_scores


def score_importance(adapted: AdaptedModel, *, importance: Callable[[Any], Tensor]) -> Scores:
    """Score every site with a torch-pruning importance that reads weights only; the model does not change."""
    return {site.name: _score(trace_mlp(site), importance) for site in adapted.sites}


def score_gradient_importance(
    adapted: AdaptedModel, batches: Batches, *, importance: Callable[[Any], Tensor], is_squared: bool
) -> Scores:
    """Score every site with a torch-pruning importance that reads `.grad`; the model does not change.

    `.grad` is the mean over all images of the loss gradient, squared per image if `is_squared`. Raises ValueError if
    there are no images, or if a label is not a class of the model.
    """
    # torch-pruning 1.6 documents this mean of squares for its `accumulate_grad`, which keeps the last image only
    # because it looks a parameter up by its name. Hence `.grad` is filled here.
    twin = copy.deepcopy(adapted)
    dtype = next(twin.model.parameters()).dtype
    twin.model.to(torch.promote_types(dtype, torch.float32))  # squares underflow in half precision
    layers = {layer: None for site in twin.sites for layer in (site.down, *(up.layer for up in site.ups))}
    gradients = compute_weight_gradients(twin, batches, layers=list(layers), is_squared=is_squared)
    scores = {}
    for site in twin.sites:
        traced = trace_mlp(site)
        traced.mlp.down.weight.grad = gradients[site.down]
        for up, plain in zip(site.ups, traced.mlp.ups, strict=True):
            plain.weight.grad = gradients[up.layer][up.start : up.start + site.width]
        if traced.mlp.norm is not None:  # an inner norm's weights do not count
            for parameter in traced.mlp.norm.parameters():
                parameter.grad = torch.zeros_like(parameter)
        scores[site.name] = _score(traced, importance)
    return scores


def _score(traced: TracedMlp, importance: Callable[[Any], Tensor]) -> Tensor:
    return importance(traced.group(range(traced.mlp.down.in_features)))


class ScoresImportance(tp.importance.Importance):  # type: ignore[misc]  # torch-pruning is untyped
    """Importance that gives scores to torch-pruning's own pruners.

    A group that holds a site's `down` gets the site's scores. All other groups get `None` and are left alone, so
    `tp.pruner.BasePruner(model, images, importance=ScoresImportance(scores, adapted=adapted))` changes MLP widths only.
    `adapted` must be a view of the same `model` object. Scores hold for the model's current widths: score again before
    each step of an iterative pruner.
    """

    def __init__(self, scores: Mapping[str, Tensor], *, adapted: AdaptedModel) -> None:
        by_name = validate_scores(scores, sites=adapted.sites)
        self._scores = {site.down: by_name[site.name] for site in adapted.sites}
        self._names = {site.down: site.name for site in adapted.sites}

    def __call__(self, group: Any) -> Tensor | None:
        """Return the scores of the group's root channels in their order, or None for a group without neurons."""
        for item in group:
            down = item.dep.target.module
            if down in self._scores and item.dep.handler == tp.prune_linear_in_channels:
                scores = self._scores[down]
                if down.in_features != len(scores):
                    raise ValueError(
                        f"{self._names[down]} has {down.in_features} neurons, but {len(scores)} scores: the model was "
                        "pruned after scoring; score it again"
                    )
                column_of = dict(zip(item.root_idxs, item.idxs, strict=True))
                return scores[torch.tensor([column_of[root] for root in group[0].root_idxs])]
        return None
