"""Removal of neurons and heads: the MLPs and the attention that hold them become narrower."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping

from pathprune.models.graph import remove_neurons
from pathprune.models.seam import AdaptedModel
from pathprune.pruning.attention import NarrowedHeads, choose_bases, narrow_heads
from pathprune.pruning.plan import PrunePlan

_LOGGER = logging.getLogger(__name__)


def apply_plan(
    adapted: AdaptedModel, *, plan: PrunePlan, narrowed: Mapping[str, NarrowedHeads] | None = None
) -> AdaptedModel:
    """Return a deep copy of the model without the neurons and heads that the plan removes.

    `narrowed` is the result of `choose_bases`; by default heads are removed, and channels of heads cannot be.

    Logs a warning if an MLP has an inner norm. The norm then normalises over fewer neurons, so the pruned model differs
    from one whose neurons are set to zero. Raises ValueError if the plan is for other widths.
    """
    plan.check(adapted.sites, adapted.attention_sites)
    narrowed = choose_bases(adapted, plan=plan) if narrowed is None else narrowed
    pruned = copy.deepcopy(adapted).refresh()
    num_norms = 0
    narrow_heads(pruned, narrowed)
    for site in pruned.sites:
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
