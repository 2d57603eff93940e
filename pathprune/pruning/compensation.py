"""What is done to the kept weights to make up for the removed neurons.

A compensation is a frozen config, registered by name, like a criterion. It changes the narrowed model in place, with a
context at hand: the dense model and what is known of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pathprune.models.linear import exact_bias, exact_weight
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.plan import PrunePlan
from pathprune.scoring.registry import Registered, Registry
from pathprune.scoring.statistics import ActivationStatistics

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class CompensationContext:
    """Everything that compensations may look at; what a compensation does not ask for may be left out.

    `plan` led from the `dense` model to the narrowed one, `statistics` describe the dense one; `batches` is a
    re-iterable of calibration images `(images [B, C, H, W], labels [B])`, `seed` that of every random choice.
    """

    dense: AdaptedModel
    plan: PrunePlan
    statistics: ActivationStatistics | None = None
    batches: Batches = ()
    seed: int = 0


class Compensation(Registered):
    """Changes the weights of a narrowed model so that it answers more like the dense one."""

    needs_statistics: ClassVar[bool] = False
    needs_covariance: ClassVar[bool] = False  # the statistics with covariances
    needs_batches: ClassVar[bool] = False  # calibration images, labels unread

    @abstractmethod
    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        """Change `pruned`, in place."""


_COMPENSATIONS: Registry[Compensation] = Registry(
    "compensation",
    Compensation,  # type: ignore[type-abstract]  # the base of what is registered, never instantiated itself
)

register = _COMPENSATIONS.register
list_compensations = _COMPENSATIONS.names
parse_compensation = _COMPENSATIONS.parse


@register("none")
class NoCompensation(Compensation):
    """Leaves the kept weights as they are."""

    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        return None


@register("mean")
class MeanShift(Compensation):
    """Puts what the removed neurons P contributed on average into the bias: `b2 += W2[:, P] μ_P` (arXiv 2507.12988)."""

    needs_statistics: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(self, pruned: AdaptedModel, context: CompensationContext) -> None:
        assert context.statistics is not None, "prune() checks what a compensation needs"
        for narrow, wide in zip(pruned.sites, context.dense.sites, strict=True):
            columns = context.plan.pruned(wide.name)
            if len(columns) == 0:
                continue
            shift_D = exact_weight(wide.down)[:, columns] @ context.statistics.sites[wide.name].mean[columns]
            set_bias(narrow.down, exact_bias(narrow.down) + shift_D)


def set_weight(down: nn.Linear, weight_DW: Tensor) -> None:
    """Replace the weight, in place, keeping its type, device and gradient flag."""
    down.weight = nn.Parameter(weight_DW.to(down.weight), requires_grad=down.weight.requires_grad)


def set_bias(down: nn.Linear, bias_D: Tensor) -> None:
    """Replace or add the bias, in place, with the type, device and gradient flag of the weight."""
    down.bias = nn.Parameter(bias_D.to(down.weight), requires_grad=down.weight.requires_grad)
