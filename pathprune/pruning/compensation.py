"""Compensations: changes of the kept weights that make up for the removed neurons.

A compensation is a frozen config, registered by name, like a criterion. Its call changes the pruned model in place.
"""

# D outputs of a down-projection, W neurons

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from pathprune.models.linear import exact_bias, exact_weight
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.attention import NarrowedHeads
from pathprune.pruning.plan import PrunePlan
from pathprune.scoring.batches import Batches
from pathprune.scoring.registry import RegisteredConfig, Registry
from pathprune.scoring.statistics import ActivationStatistics


@dataclass(frozen=True)
class CompensationContext:
    """Everything that a compensation may use; inputs that a compensation does not need may be left out.

    - dense: the model before pruning.
    - plan: the plan that led from the dense to the pruned model.
    - statistics: activation statistics of the dense model.
    - narrowed: heads and bases of the attention that the plan narrowed, by site name.
    - batches: re-iterable calibration images `(images [B, C, H, W], labels [B])`.
    - seed: seed of all random choices.
    """

    dense: AdaptedModel
    plan: PrunePlan
    statistics: ActivationStatistics | None = None
    batches: Batches = ()
    narrowed: Mapping[str, NarrowedHeads] = field(default_factory=dict)
    seed: int = 0


class Compensation(RegisteredConfig):
    """A change of a pruned model's weights that brings its output closer to the dense model's.

    The class variables declare the inputs that the context must provide.
    """

    needs_statistics: ClassVar[bool] = False
    needs_covariance: ClassVar[bool] = False  # statistics with covariances
    needs_batches: ClassVar[bool] = False  # calibration images; labels are not used

    @abstractmethod
    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        """Change the weights of `pruned` in place."""


_COMPENSATIONS: Registry[Compensation] = Registry(
    "compensation",
    Compensation,  # type: ignore[type-abstract]  # the base class, which is never instantiated itself
)

CompensationSpec = Annotated[Any, _COMPENSATIONS]  # what a recipe may give for a compensation

register = _COMPENSATIONS.register
list_compensations = _COMPENSATIONS.list_names
parse_compensation = _COMPENSATIONS.parse


@register("none")
class NoCompensation(Compensation):
    """No compensation: the kept weights stay as they are."""

    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        return None


@register("mean")
class MeanShift(Compensation):
    """Mean shift: the bias takes over the average contribution of the removed neurons.

    `b2 += W2[:, P] μ_P` for removed neurons P with mean activations μ_P, as in Variance-Based Pruning
    (arXiv 2507.12988).
    """

    needs_statistics: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        assert context.statistics is not None, "prune() checks the inputs of a compensation"
        for narrow, wide in zip(pruned.sites, context.dense.sites, strict=True):
            columns = context.plan.pruned(wide.name)
            if len(columns) == 0:
                continue
            shift_D = exact_weight(wide.down)[:, columns] @ context.statistics.sites[wide.name].mean[columns]
            set_bias(narrow.down, exact_bias(narrow.down) + shift_D)


def set_weight(down: nn.Linear, weight_DW: Tensor) -> None:
    """Replace the weight in place; dtype, device and `requires_grad` stay."""
    down.weight = nn.Parameter(weight_DW.to(down.weight), requires_grad=down.weight.requires_grad)


def set_bias(down: nn.Linear, bias_D: Tensor) -> None:
    """Replace or add the bias in place, with the dtype, device and `requires_grad` of the weight."""
    down.bias = nn.Parameter(bias_D.to(down.weight), requires_grad=down.weight.requires_grad)
