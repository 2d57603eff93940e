"""Criteria that are torch-pruning's importances: see `torch_pruning_bridge`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pathprune.scoring.criteria import Criterion, ScoringContext, register

if TYPE_CHECKING:
    from pathprune.scoring.scores import Scores


@register("magnitude-l1")
class MagnitudeL1(Criterion):
    """Mean of the l1 norms of the neuron's `fc1` row and `fc2` column."""

    def __call__(self, context: ScoringContext) -> Scores:
        from torch_pruning import importance

        from pathprune.scoring.torch_pruning_bridge import score_importance

        return score_importance(
            context.adapted, importance=importance.MagnitudeImportance(p=1, group_reduction="mean", normalizer=None)
        )


@register("magnitude-l2")
class MagnitudeL2(Criterion):
    """Mean of the squared l2 norms of the neuron's `fc1` row and `fc2` column."""

    def __call__(self, context: ScoringContext) -> Scores:
        from torch_pruning import importance

        from pathprune.scoring.torch_pruning_bridge import score_importance

        return score_importance(
            context.adapted, importance=importance.MagnitudeImportance(p=2, group_reduction="mean", normalizer=None)
        )


@register("lamp")
class Lamp(Criterion):
    """LAMP (arXiv 2010.07611): squared magnitude over the sum of all squared magnitudes in the block no smaller."""

    def __call__(self, context: ScoringContext) -> Scores:
        from torch_pruning import importance

        from pathprune.scoring.torch_pruning_bridge import score_importance

        return score_importance(context.adapted, importance=importance.LAMPImportance(p=2, group_reduction="mean"))


@register("fpgm")
class Fpgm(Criterion):
    """FPGM (arXiv 1811.00250): summed distance to the block's other neurons; the most replaceable neuron scores lowest.

    torch-pruning measures the distance between squared weights.
    """

    def __call__(self, context: ScoringContext) -> Scores:
        from torch_pruning import importance

        from pathprune.scoring.torch_pruning_bridge import score_importance

        return score_importance(
            context.adapted, importance=importance.FPGMImportance(p=2, group_reduction="mean", normalizer=None)
        )


@register("taylor")
class Taylor(Criterion):
    """First-order change of the loss (Molchanov et al., CVPR 2019): `|w · dL/dw|` summed over the neuron's weights."""

    needs_labels: ClassVar[bool] = True
    multivariable: bool = Field(
        False, description="Take the absolute value of the sum instead of the sum of the absolute values."
    )

    def __call__(self, context: ScoringContext) -> Scores:
        from torch_pruning import importance

        from pathprune.scoring.torch_pruning_bridge import score_gradient_importance

        taylor = importance.TaylorImportance(group_reduction="mean", normalizer=None, multivariable=self.multivariable)
        return score_gradient_importance(context.adapted, context.batches, importance=taylor, is_squared=False)


@register("hessian")
class Hessian(Criterion):
    """Optimal brain damage with an empirical Fisher diagonal: `w² · E[(dL/dw)²]` summed over the neuron's weights."""

    needs_labels: ClassVar[bool] = True

    def __call__(self, context: ScoringContext) -> Scores:
        from torch_pruning import importance

        from pathprune.scoring.torch_pruning_bridge import score_gradient_importance

        hessian = importance.HessianImportance(group_reduction="mean", normalizer=None)
        return score_gradient_importance(context.adapted, context.batches, importance=hessian, is_squared=True)
