"""Removing neurons for good: the MLPs that hold them become narrower, nothing else changes."""

from __future__ import annotations

import copy
import logging

from pathprune.models.graph import remove_neurons
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.plan import PrunePlan

log = logging.getLogger(__name__)


def apply_plan(adapted: AdaptedModel, *, plan: PrunePlan) -> AdaptedModel:
    """A deep copy of the model without the neurons that the plan removes; nothing else of it differs.

    Logs a warning where an MLP has a norm inside, which then sees fewer neurons: such a model gives other numbers than
    with the neurons held at zero. Raises ValueError if the plan is for other widths.
    """
    plan.check(adapted.sites)
    pruned = copy.deepcopy(adapted)
    normed = 0
    for site in pruned.refresh().sites:
        columns = plan.pruned(site.name).tolist()
        if columns:
            remove_neurons(site, columns)
            normed += site.norm is not None
    if normed:
        log.warning(
            "%d MLPs have a norm inside, which now sees fewer neurons: the pruned model differs from the masked one; "
            "of the compensations, 'sequential' is the one that fits behind the narrowed norm",
            normed,
        )
    return pruned.refresh()
