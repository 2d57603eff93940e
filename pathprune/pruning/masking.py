"""Neurons held at zero instead of removed: what a pruned model must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.plan import PrunePlan


@contextmanager
def masked(adapted: AdaptedModel, *, plan: PrunePlan) -> Iterator[None]:
    """While open, the columns that the plan removes are zero at the input of every site's `down`."""
    plan.check(adapted.sites)
    with attach_hooks(site.down.register_forward_pre_hook(_zeroing(plan.pruned(site.name))) for site in adapted.sites):
        yield


def _zeroing(columns: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def zero(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        return (hidden.index_fill(-1, columns.to(hidden.device), 0), *rest)

    return zero
