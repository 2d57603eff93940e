"""Pruning in several rounds: a share of the neurons that are to go in each, chosen by the scores of the model then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pathprune.models.seam import NeuronSite
from pathprune.pruning.plan import PrunePlan
from pathprune.scoring.scores import Scores, validate_scores


def widths_after(plan: PrunePlan, *, done: int, rounds: int) -> dict[str, int]:
    """The width of every site after `done` of `rounds` equal steps from the dense widths to those of `plan`."""
    return {row.site: row.width - round((row.width - row.kept) * done / rounds) for row in plan.table()}


def keep_best(scores: Scores, *, sites: Sequence[NeuronSite], widths: Mapping[str, int]) -> PrunePlan:
    """Keep the `widths[name]` best-scored neurons of every site; of equal scores, the lower column."""
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
    """The plan that removes nothing."""
    return PrunePlan(
        kept={site.name: torch.arange(site.width) for site in sites},
        widths={site.name: site.width for site in sites},
        blocks={site.name: site.block for site in sites},
    )


def composed(first: PrunePlan, then: PrunePlan) -> PrunePlan:
    """One plan for the model that `first` was made for: what stays where `then` prunes what `first` left."""
    left = {name: len(kept) for name, kept in first.kept.items()}
    if left != dict(then.widths):
        raise ValueError(f"the first plan leaves neurons {left}, the second is for {dict(then.widths)}")
    kept = {name: columns[then.kept[name]] for name, columns in first.kept.items()}
    return PrunePlan(kept=kept, widths=first.widths, blocks=first.blocks)
