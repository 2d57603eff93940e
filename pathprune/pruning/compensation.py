"""What is done to the kept weights to make up for the removed neurons.

A compensation is a frozen config, registered by name, like a criterion. It changes the narrowed model in place, with
the dense model at hand.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import nn

from pathprune.models.seam import AdaptedModel
from pathprune.pruning.plan import PrunePlan
from pathprune.scoring.registry import Registered, Registry
from pathprune.scoring.statistics import ActivationStatistics


class Compensation(Registered):
    """Changes the weights of a narrowed model so that it answers more like the dense one."""

    needs_statistics: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self, pruned: AdaptedModel, dense: AdaptedModel, *, plan: PrunePlan, statistics: ActivationStatistics | None
    ) -> None:
        """Change `pruned`, in place. `plan` led to it from `dense`, which `statistics` describe."""


_COMPENSATIONS: Registry[Compensation] = Registry(
    "compensation",
    Compensation,  # type: ignore[type-abstract]  # the base of what is registered, never instantiated itself
)

list_compensations = _COMPENSATIONS.names
parse_compensation = _COMPENSATIONS.parse


@_COMPENSATIONS.register("none")
class NoCompensation(Compensation):
    """Leaves the kept weights as they are."""

    def __call__(
        self, pruned: AdaptedModel, dense: AdaptedModel, *, plan: PrunePlan, statistics: ActivationStatistics | None
    ) -> None:
        return None


@_COMPENSATIONS.register("mean")
class MeanShift(Compensation):
    """Puts what the removed neurons P contributed on average into the bias: `b2 += W2[:, P] μ_P` (arXiv 2507.12988)."""

    needs_statistics: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(
        self, pruned: AdaptedModel, dense: AdaptedModel, *, plan: PrunePlan, statistics: ActivationStatistics | None
    ) -> None:
        assert statistics is not None, "prune() checks what a compensation needs"
        for narrow, wide in zip(pruned.sites, dense.sites, strict=True):
            columns = plan.pruned(wide.name)
            if len(columns) == 0:
                continue
            weight = wide.down.weight[:, columns.to(wide.down.weight.device)].cpu().to(torch.float64)
            shift = weight @ statistics.sites[wide.name].mean[columns]
            bias = dict(narrow.down.named_parameters()).get("bias")
            if bias is not None:
                shift += bias.cpu()
            kept_weight = narrow.down.weight
            narrow.down.bias = nn.Parameter(shift.to(kept_weight), requires_grad=kept_weight.requires_grad)
