"""torch-pruning's importances as criteria, and our scores as a torch-pruning importance.

torch-pruning scores a *group*, all the layers that a neuron reaches into: for a plain MLP the neuron's row of `fc1` and
its column of `fc2`, averaged (`group_reduction="mean"`). Its normalisation per group is off (`normalizer=None`), so
that scores of different blocks stay on the importance's own scale; LAMP's own normalisation is its point.

Not offered: batch-norm scales, which a ViT's MLP has none of; OBD-C, which reads `fc1` alone; torch-pruning's
activation importance, which keeps the last batch only (`variance` sees them all).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch_pruning as tp
from torch import Tensor

from pathprune.models.graph import TracedMlp, trace_mlp
from pathprune.models.seam import AdaptedModel
from pathprune.scoring.criteria import Criterion, ScoringContext, register
from pathprune.scoring.gradients import weight_gradients
from pathprune.scoring.scores import Scores, validate_scores


def importance_scores(adapted: AdaptedModel, *, importance: Callable[[Any], Tensor]) -> Scores:
    """Score every site with a torch-pruning importance that reads weights only; the model is not touched."""
    return {site.name: _score(trace_mlp(site), importance) for site in adapted.sites}


def gradient_importance_scores(
    context: ScoringContext, *, importance: Callable[[Any], Tensor], squared: bool
) -> Scores:
    """Score every site with an importance that reads `.grad`: the mean gradient over all batches, or the mean square.

    torch-pruning 1.6's own `accumulate_grad` keeps the last image only (it looks a parameter up by its name), so
    `.grad` is filled here with what it documents: the average over every image of the image's squared gradient.
    """
    twin = copy.deepcopy(context.adapted)
    parameter = next(twin.model.parameters())
    twin.model.to(torch.promote_types(parameter.dtype, torch.float32))  # squares underflow in half precision
    layers = {layer: None for site in twin.sites for layer in (site.down, *(up.layer for up in site.ups))}
    gradients = weight_gradients(twin, context.batches, layers=list(layers), squared=squared)
    scores = {}
    for site in twin.sites:
        traced = trace_mlp(site)
        traced.mlp.down.weight.grad = gradients[site.down]
        for up, plain in zip(site.ups, traced.mlp.ups, strict=True):
            plain.weight.grad = gradients[up.layer][up.start : up.start + site.width]
        if traced.mlp.norm is not None:  # a norm's weights are not weighed
            for parameter in traced.mlp.norm.parameters():
                parameter.grad = torch.zeros_like(parameter)
        scores[site.name] = _score(traced, importance)
    return scores


def _score(traced: TracedMlp, importance: Callable[[Any], Tensor]) -> Tensor:
    return importance(traced.group(range(traced.mlp.down.in_features)))


class ScoresImportance(tp.importance.Importance):  # type: ignore[misc]  # torch-pruning is untyped
    """Scores for torch-pruning's own pruners: any group that holds a site's `down` gets its scores, others `None`.

    torch-pruning leaves groups alone whose importance is `None`, so `tp.pruner.BasePruner(model, images,
    importance=ScoresImportance(scores, adapted=adapted))` changes MLP widths only. `adapted` must be a view of the very
    `model` that the pruner is given. Scores are of the widths at hand: with several iterative steps, score again before
    each.
    """

    def __init__(self, scores: Mapping[str, Tensor], *, adapted: AdaptedModel) -> None:
        checked = validate_scores(scores, sites=adapted.sites)
        self._scores = {site.down: checked[site.name] for site in adapted.sites}
        self._names = {site.down: site.name for site in adapted.sites}

    def __call__(self, group: Any) -> Tensor | None:
        """The scores of the group's root channels, in their order."""
        for item in group:
            down = item.dep.target.module
            if down in self._scores and item.dep.handler == tp.prune_linear_in_channels:
                scores = self._scores[down]
                if down.in_features != len(scores):
                    raise ValueError(
                        f"{self._names[down]} has {down.in_features} neurons, its scores are of {len(scores)}: "
                        "the model was pruned since; score it again"
                    )
                column_of = dict(zip(item.root_idxs, item.idxs, strict=True))
                return scores[torch.tensor([column_of[root] for root in group[0].root_idxs])]
        return None


@register("magnitude-l1")
class MagnitudeL1(Criterion):
    """Mean of the l1 norms of the neuron's `fc1` row and `fc2` column."""

    def __call__(self, context: ScoringContext) -> Scores:
        return importance_scores(
            context.adapted, importance=tp.importance.MagnitudeImportance(p=1, group_reduction="mean", normalizer=None)
        )


@register("magnitude-l2")
class MagnitudeL2(Criterion):
    """Mean of the squared l2 norms of the neuron's `fc1` row and `fc2` column."""

    def __call__(self, context: ScoringContext) -> Scores:
        return importance_scores(
            context.adapted, importance=tp.importance.MagnitudeImportance(p=2, group_reduction="mean", normalizer=None)
        )


@register("lamp")
class Lamp(Criterion):
    """LAMP (arXiv 2010.07611): squared magnitude over the sum of all that are no smaller in the block."""

    def __call__(self, context: ScoringContext) -> Scores:
        return importance_scores(context.adapted, importance=tp.importance.LAMPImportance(p=2, group_reduction="mean"))


@register("fpgm")
class Fpgm(Criterion):
    """FPGM (arXiv 1811.00250): summed distance to the block's other neurons; the most replaceable score lowest.

    torch-pruning takes the distance between the weights' squares.
    """

    def __call__(self, context: ScoringContext) -> Scores:
        return importance_scores(
            context.adapted, importance=tp.importance.FPGMImportance(p=2, group_reduction="mean", normalizer=None)
        )


@register("taylor")
class Taylor(Criterion):
    """First-order loss change (Molchanov et al., CVPR 2019): `|w · dL/dw|` summed over the neuron's weights.

    With `multivariable`, the absolute value is taken of the sum.
    """

    needs_labels: ClassVar[bool] = True
    multivariable: bool = False

    def __call__(self, context: ScoringContext) -> Scores:
        importance = tp.importance.TaylorImportance(
            group_reduction="mean", normalizer=None, multivariable=self.multivariable
        )
        return gradient_importance_scores(context, importance=importance, squared=False)


@register("hessian")
class Hessian(Criterion):
    """Optimal brain damage with an empirical Fisher diagonal: `w² · E[(dL/dw)²]` summed over the neuron's weights."""

    needs_labels: ClassVar[bool] = True

    def __call__(self, context: ScoringContext) -> Scores:
        importance = tp.importance.HessianImportance(group_reduction="mean", normalizer=None)
        return gradient_importance_scores(context, importance=importance, squared=True)
