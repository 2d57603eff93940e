"""Removal of neurons: the MLPs that hold them become narrower, and nothing else changes."""

from __future__ import annotations

import copy
import logging

from pathprune.models.graph import remove_neurons
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.plan import PrunePlan

_LOGGER = logging.getLogger(__name__)


def apply_plan(adapted: AdaptedModel, *, plan: PrunePlan) -> AdaptedModel:
    """Return a deep copy of the model without the neurons that the plan removes.

    Logs a warning if an MLP has an inner norm. The norm then normalises over fewer neurons, so the pruned model differs
    from one whose neurons are set to zero. Raises ValueError if the plan is for other widths.
    """
    plan.check(adapted.sites)
    pruned = copy.deepcopy(adapted)
    num_norms = 0
    for site in pruned.refresh().sites:
        columns = plan.pruned(site.name).tolist()
        if columns:
            remove_neurons(site, columns)
            num_norms += site.norm is not None
    if num_norms:
        _LOGGER.warning(
            "%d pruned MLPs have an inner norm, which now normalises over fewer neurons: the pruned model differs from "
            "one whose neurons are set to zero; use compensation 'sequential', which fits behind the narrower norm",
            num_norms,
        )
    return pruned.refresh()
