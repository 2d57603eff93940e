"""Plans on every rung of a ladder of widths, and the plan nearest to a ratio."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pathprune.models.seam import NeuronSite
from pathprune.pruning.allocation import (
    Curve,
    Ladder,
    Step,
    build_uniform_ladder,
    build_value_ladder,
    value_steps_by_damage,
    value_steps_by_score,
)
from pathprune.pruning.budget import Cost, find_nearest_rung
from pathprune.pruning.plan import PrunePlan
from pathprune.pruning.rules import Normalize, Scope, WidthRules, check_ratio
from pathprune.scoring.scores import Scores, validate_scores


@dataclass(frozen=True)
class PlanLadder:
    """Plans from wide to narrow, one per rung of a ladder of widths.

    - ladder: widths of every site on every rung.
    - ranking: columns of every site, best score first.
    - blocks: block of every site.
    - competing: sites whose width depends on the budget.
    """

    ladder: Ladder
    ranking: Mapping[str, Tensor]
    blocks: Mapping[str, int]
    competing: Sequence[str]

    @property
    def dense_widths(self) -> dict[str, int]:
        """Return the dense width of every site."""
        return {name: len(columns) for name, columns in self.ranking.items()}

    def plan(self, rung: int) -> PrunePlan:
        """Return the plan that keeps each site's top-scoring neurons at the widths of a rung."""
        widths = self.ladder.widths_at(rung)
        kept = {name: columns[: widths[name]].sort().values for name, columns in self.ranking.items()}
        return PrunePlan(kept=kept, widths=self.dense_widths, blocks=self.blocks)

    def compute_removed_shares(self, cost: Cost | None = None) -> list[float]:
        """Return the share removed on every rung: of `cost`, or of the neurons of competing sites."""
        dense = self.dense_widths
        if cost is None:
            cost = Cost(sum(dense[name] for name in self.competing) or 1, dict.fromkeys(self.competing, 1))
        return cost.compute_removed_shares(self.ladder, dense=dense)


def make_plan(
    scores: Scores,
    *,
    sites: Sequence[NeuronSite],
    ratio: float = 0.5,
    cost: Cost | None = None,
    scope: Scope = "uniform",
    normalize: Normalize = "none",
    damage: Mapping[str, Curve] | None = None,
    round_to: int = 1,
    min_width: int = 1,
    block_ratios: Mapping[int, float] | None = None,
    exclude_blocks: Collection[int] = (),
) -> PrunePlan:
    """Keep each site's top-scoring neurons so that a fraction `ratio` is removed.

    - scores: one score per neuron `[W]` of every site, higher = keep. Ties keep the earlier site and column.
    - ratio: fraction removed of `cost`, or of the neurons in blocks that compete. The result is the plan nearest to
      `ratio`, and the wider of two equally near plans.
    - cost: cost of the whole model and of each neuron, from `pathprune.evaluation.neuron_cost`. None: neurons count.
    - scope: `uniform` removes the same share of every block. `global` removes the least valuable neurons of the whole
      model; a block at its smallest allowed width loses no more neurons, and other blocks lose more in its place.
    - normalize: how `global` compares blocks. `none` compares raw scores, for criteria whose scores mean the same in
      every block (a loss change, LAMP, path mass). `mean` divides scores by their block's mean, for criteria on each
      block's own scale (a variance, a weight norm). `damage` chooses widths by measured damage per cost, and takes only
      the order within a block from the scores.
    - damage: for `normalize="damage"`, the damage of each site at several widths, from
      `pathprune.pruning.measure_damage`.
    - round_to: kept widths are multiples of this number, or the dense width.
    - min_width: least number of neurons that every block keeps.
    - block_ratios: fraction removed of single blocks, by index. These blocks do not compete with the others.
    - exclude_blocks: blocks that keep every neuron.

    Raises ValueError for settings out of range, and BudgetError, a ValueError that names the nearest possible fraction,
    if no plan comes within 0.01 or one step of `ratio`.
    """
    check_ratio("ratio", ratio)
    rules = WidthRules(
        scope=scope,
        normalize=normalize,
        round_to=round_to,
        min_width=min_width,
        block_ratios=block_ratios or {},
        exclude_blocks=exclude_blocks,
    )
    plans = build_plan_ladder(scores, sites=sites, rules=rules, cost=cost, damage=damage)
    if cost is None and not plans.competing:
        return plans.plan(0)
    total = "these neurons" if cost is None else "the whole model's cost"
    return plans.plan(find_nearest_rung(plans.compute_removed_shares(cost), ratio=ratio, total=total))


def build_plan_ladder(
    scores: Scores,
    *,
    sites: Sequence[NeuronSite],
    rules: WidthRules,
    cost: Cost | None = None,
    damage: Mapping[str, Curve] | None = None,
) -> PlanLadder:
    """Return the plans of all rungs that a budget can choose from; see `make_plan` for the arguments.

    Raises ValueError for settings out of range, and BudgetError if `min_width` rules out a block's own ratio.
    """
    rules.check_blocks(sites)
    rankings = {name: _rank(site_scores) for name, site_scores in validate_scores(scores, sites=sites).items()}
    fixed_widths: dict[str, int] = {}
    allowed_widths: dict[str, list[int]] = {}
    for site in sites:
        own_ratio = rules.block_ratios.get(site.block)
        if site.block in rules.exclude_blocks:
            fixed_widths[site.name] = site.width
        elif own_ratio is not None:
            fixed_widths[site.name] = _find_width(site, rules.allowed_widths(site), ratio=own_ratio)
        else:
            allowed_widths[site.name] = rules.allowed_widths(site)
    if rules.scope == "uniform":
        ladder = build_uniform_ladder(allowed_widths, fixed=fixed_widths)
    else:
        steps = _value_steps(allowed_widths, rankings, normalize=rules.normalize, cost=cost, damage=damage or {})
        ladder = build_value_ladder(steps, allowed=allowed_widths, fixed=fixed_widths)
    return PlanLadder(
        ladder,
        ranking={site.name: rankings[site.name].columns for site in sites},
        blocks={site.name: site.block for site in sites},
        competing=tuple(allowed_widths),
    )


class _Ranking(NamedTuple):
    """Columns of a site, best score first, and their scores."""

    columns: Tensor
    scores: list[float]


def _rank(scores: Tensor) -> _Ranking:
    values, columns = scores.sort(descending=True, stable=True)
    return _Ranking(columns, values.tolist())


def _find_width(site: NeuronSite, widths: Sequence[int], *, ratio: float) -> int:
    """Return the allowed width that removes the fraction nearest to `ratio` of the site's neurons."""
    removed = [1 - width / site.width for width in reversed(widths)]
    return widths[-1 - find_nearest_rung(removed, ratio=ratio, total=f"the neurons of block {site.block}")]


def _value_steps(
    allowed_widths: Mapping[str, Sequence[int]],
    rankings: Mapping[str, _Ranking],
    *,
    normalize: Normalize,
    cost: Cost | None,
    damage: Mapping[str, Curve],
) -> list[Step]:
    """Return the steps of all sites, with values that compare across blocks as `normalize` says."""
    steps: list[Step] = []
    for name, widths in allowed_widths.items():
        if normalize == "damage":
            curve = _get_curve(damage, name, widths)
            steps += value_steps_by_damage(name, widths, curve, cost=cost.per_neuron[name] if cost else 1.0)
        else:
            scores = rankings[name].scores
            scale = _compute_mean(name, scores) if normalize == "mean" else 1.0
            steps += value_steps_by_score(name, widths, scores, scale=scale)
    return steps


def _get_curve(damage: Mapping[str, Curve], name: str, widths: Sequence[int]) -> Curve:
    """Return a site's damage curve; raises ValueError unless the curve covers all allowed widths."""
    if name not in damage:
        raise ValueError(f"normalize 'damage' needs a damage curve of {name}; see measure_damage")
    measured = [width for width, _ in damage[name]]
    if not measured or min(measured) > widths[0] or max(measured) < widths[-1]:
        raise ValueError(
            f"the damage curve of {name} has widths {sorted(measured)} but must cover the allowed widths "
            f"{widths[0]} … {widths[-1]}; measure both ends, or raise min_width"
        )
    return damage[name]


def _compute_mean(name: str, scores: Sequence[float]) -> float:
    mean = math.fsum(scores) / len(scores)
    if mean <= 0:
        raise ValueError(
            f"normalize 'mean' divides by each site's mean score, but the mean of {name} is {mean:g}; use a criterion "
            "with positive scores, or another normalize"
        )
    return mean
