"""Neurons masked with zeros instead of removed: the reference for a pruned model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from pathprune.models.hooks import attach_hooks
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.plan import PrunePlan


@contextmanager
def mask_neurons(adapted: AdaptedModel, *, plan: PrunePlan) -> Iterator[None]:
    """Set the activations of the plan's removed neurons to zero inside the context.

    Raises ValueError if the plan is for other widths.
    """
    plan.check(adapted.sites)
    with attach_hooks(site.down.register_forward_pre_hook(_zero(plan.pruned(site.name))) for site in adapted.sites):
        yield


def _zero(columns: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return a hook that sets columns of a layer's input to zero."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        return (hidden.index_fill(-1, columns.to(hidden.device), 0), *rest)

    return hook
