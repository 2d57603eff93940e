"""Pruning in several rounds: each removes a share of the neurons, chosen by the scores of the current model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from pathprune.models.seam import NeuronSite
from pathprune.pruning.plan import PrunePlan
from pathprune.scoring.scores import Scores, validate_scores


def interpolate_widths(plan: PrunePlan, *, done: int, rounds: int) -> dict[str, int]:
    """Return the width of every site after `done` of `rounds` equal steps from the dense widths to the plan's."""
    return {row.site: row.width - round((row.width - row.kept) * done / rounds) for row in plan.table()}


def keep_best(scores: Scores, *, sites: Sequence[NeuronSite], widths: Mapping[str, int]) -> PrunePlan:
    """Return the plan that keeps each site's `widths[name]` top-scoring neurons; ties keep the lower column."""
    kept = {
        name: values.sort(descending=True, stable=True).indices[: widths[name]].sort().values
        for name, values in validate_scores(scores, sites=sites).items()
    }
    return PrunePlan(
        kept=kept,
        widths={site.name: site.width for site in sites},
        blocks={site.name: site.block for site in sites},
    )


def keep_all(sites: Sequence[NeuronSite]) -> PrunePlan:
    """Return the plan that removes nothing."""
    return PrunePlan(
        kept={site.name: torch.arange(site.width) for site in sites},
        widths={site.name: site.width for site in sites},
        blocks={site.name: site.block for site in sites},
    )


def compose_plans(first: PrunePlan, then: PrunePlan) -> PrunePlan:
    """Return one plan that removes the neurons and heads of two successive plans.

    Columns of `then` count the neurons that `first` keeps, and its heads count the heads that `first` keeps. Columns
    and heads of the result count those of the model that `first` is for. Raises ValueError if `then` is for other
    widths than `first` leaves.
    """
    left = {name: len(kept) for name, kept in first.kept.items()}
    if left != dict(then.widths):
        raise ValueError(
            f"the first plan leaves widths {left}, but the second plan is for {dict(then.widths)}; make the second "
            "plan for the pruned model"
        )
    kept = {name: columns[then.kept[name]] for name, columns in first.kept.items()}
    attention = {**then.attention, **first.attention}
    for name in first.attention.keys() & then.attention.keys():
        before, after = first.attention[name], then.attention[name]
        attention[name] = replace(after, sizes=before.sizes, heads=before.heads[after.heads])
    return PrunePlan(kept=kept, widths=first.widths, blocks=first.blocks, attention=attention)
