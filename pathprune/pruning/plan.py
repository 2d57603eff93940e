"""Scores and a budget -> a plan: which neurons every site keeps.

Ratios are the fraction *removed*. A block's kept width is one of its *allowed widths*: its dense width, and every
multiple of `round_to` below it that is at least `min_width`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pathprune.models.seam import NeuronSite
from pathprune.pruning.allocation import (
    Curve,
    Ladder,
    Step,
    allowed_widths,
    damage_steps,
    score_steps,
    uniform_ladder,
    valued_ladder,
)
from pathprune.pruning.budget import Cost, nearest_rung
from pathprune.scoring.scores import Scores, checked_scores

Scope = Literal["uniform", "global"]
Normalize = Literal["none", "mean", "damage"]


class PlanRow(NamedTuple):
    """One site of a plan."""

    site: str
    block: int
    width: int
    kept: int


@dataclass(frozen=True, eq=False)
class PrunePlan:
    """The neurons that stay. By site name: sorted int64 columns `kept`, dense `widths`, `blocks` they are in."""

    kept: Mapping[str, Tensor]
    widths: Mapping[str, int]
    blocks: Mapping[str, int]

    def __post_init__(self) -> None:
        if not self.kept.keys() == self.widths.keys() == self.blocks.keys():
            raise ValueError(
                f"a plan needs kept columns, widths and blocks of the same sites, got {list(self.kept)}, "
                f"{list(self.widths)} and {list(self.blocks)}"
            )
        for name, kept in self.kept.items():
            inside = kept.dtype == torch.int64 and kept.ndim == 1 and 0 < len(kept) <= self.widths[name]
            if not inside or kept[0] < 0 or kept[-1] >= self.widths[name] or not (kept.diff() > 0).all():
                raise ValueError(
                    f"the kept neurons of {name} must be sorted int64 columns, at least one, within its "
                    f"{self.widths[name]}; got {kept.tolist()}"
                )

    def pruned(self, name: str) -> Tensor:
        """The columns of a site that go, sorted."""
        mask = torch.ones(self.widths[name], dtype=torch.bool)
        mask[self.kept[name]] = False
        return mask.nonzero().flatten()

    @property
    def neurons_removed(self) -> float:
        """The fraction of all MLP neurons that goes."""
        return 1 - sum(len(kept) for kept in self.kept.values()) / sum(self.widths.values())

    def table(self) -> list[PlanRow]:
        """One row per site, in order: what a dry run shows."""
        return [PlanRow(name, self.blocks[name], self.widths[name], len(kept)) for name, kept in self.kept.items()]

    def check(self, sites: Sequence[NeuronSite]) -> None:
        """Raise ValueError unless the plan was made for sites of these names and widths."""
        widths = {site.name: site.width for site in sites}
        if widths != dict(self.widths):
            raise ValueError(f"the plan is for neurons {dict(self.widths)}, the model has {widths}; make a new plan")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: one entry per site."""
        return {
            row.site: {"block": row.block, "width": row.width, "kept": self.kept[row.site].tolist()}
            for row in self.table()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PrunePlan:
        """Read what `to_dict` wrote."""
        return cls(
            kept={name: torch.tensor(site["kept"], dtype=torch.int64) for name, site in data.items()},
            widths={name: int(site["width"]) for name, site in data.items()},
            blocks={name: int(site["block"]) for name, site in data.items()},
        )


@dataclass(frozen=True)
class PlanLadder:
    """Plans from wide to narrow: which columns stay on each rung of a ladder of widths."""

    ladder: Ladder
    ranking: Mapping[str, Tensor]  # columns by site, best first
    blocks: Mapping[str, int]
    competing: Sequence[str]  # sites whose width the budget decides

    @property
    def widths(self) -> dict[str, int]:
        """The dense width of every site."""
        return {name: len(columns) for name, columns in self.ranking.items()}

    def plan(self, rung: int) -> PrunePlan:
        """The plan of a rung."""
        widths = self.ladder.widths(rung)
        kept = {name: columns[: widths[name]].sort().values for name, columns in self.ranking.items()}
        return PrunePlan(kept=kept, widths=self.widths, blocks=self.blocks)

    def removed(self, cost: Cost | None = None) -> list[float]:
        """The share removed on every rung: of `cost`, or of the neurons that compete."""
        if cost is None:
            widths = self.widths
            cost = Cost(sum(widths[name] for name in self.competing) or 1, dict.fromkeys(self.competing, 1))
        return cost.removed(self.ladder, dense=self.widths)


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
    """Keep the best-scored neurons of each site, so many that `ratio` goes; the other settings are `plan_ladder`'s.

    `ratio` is the fraction removed of `cost` (see `evaluation.neuron_cost`), or of the neurons in the blocks that
    compete. It is met by the nearest rung of the ladder, the wider of two; BudgetError says what the nearest is where
    no rung comes within one point or one step.
    """
    _check_ratio("ratio", ratio)
    plans = plan_ladder(
        scores,
        sites=sites,
        cost=cost,
        scope=scope,
        normalize=normalize,
        damage=damage,
        round_to=round_to,
        min_width=min_width,
        block_ratios=block_ratios,
        exclude_blocks=exclude_blocks,
    )
    if cost is None and not plans.competing:
        return plans.plan(0)
    of = "these neurons" if cost is None else "the whole model's cost"
    return plans.plan(nearest_rung(plans.removed(cost), ratio=ratio, of=of))


def plan_ladder(
    scores: Scores,
    *,
    sites: Sequence[NeuronSite],
    cost: Cost | None = None,
    scope: Scope = "uniform",
    normalize: Normalize = "none",
    damage: Mapping[str, Curve] | None = None,
    round_to: int = 1,
    min_width: int = 1,
    block_ratios: Mapping[int, float] | None = None,
    exclude_blocks: Collection[int] = (),
) -> PlanLadder:
    """Every plan that a budget can stop at; equal scores are kept in order of site, then column.

    - scope: `uniform` narrows every block by the same share; `global` removes what is worth least wherever it is, and
      a block that reaches its smallest allowed width gives no more, others give in its place.
    - normalize: how `global` makes blocks comparable: `none` takes scores as they are, since it is for the criterion to
      say (a loss change, LAMP and path mass compare across blocks); `mean` divides by the block's mean, for those that
      do not (a variance or a weight norm depends on the block's scale); `damage` takes the widths from `damage` curves
      by site (see `measure_damage`), per neuron's `cost`, and only the order within a block from the scores.
    - block_ratios: blocks with a ratio of their own, of their neurons; they do not compete with the others.
    - exclude_blocks: blocks that keep every neuron.

    Raises ValueError for settings out of range, and BudgetError for a block ratio that `min_width` does not allow.
    """
    block_ratios = dict(block_ratios or {})
    for block, own_ratio in block_ratios.items():
        _check_ratio(f"ratio of block {block}", own_ratio)
    _check_blocks(sites, block_ratios=block_ratios, excluded=exclude_blocks)
    _check_choice("scope", scope, ("uniform", "global"))
    _check_choice("normalize", normalize, ("none", "mean", "damage"))
    if round_to < 1:
        raise ValueError(f"round_to {round_to}: must be at least 1, the number that kept widths are multiples of")

    ranked = {name: _Ranked.of(site_scores) for name, site_scores in checked_scores(scores, sites=sites).items()}
    fixed: dict[str, int] = {}
    allowed: dict[str, list[int]] = {}
    for site in sites:
        if site.block in exclude_blocks:
            fixed[site.name] = site.width
            continue
        _check_min_width(site, min_width)
        widths = allowed_widths(site.width, round_to=round_to, min_width=min_width)
        own = block_ratios.get(site.block)
        if own is None:
            allowed[site.name] = widths
        else:
            removed = [1 - width / site.width for width in reversed(widths)]
            fixed[site.name] = widths[-1 - nearest_rung(removed, ratio=own, of=f"the neurons of block {site.block}")]
    return PlanLadder(
        _ladder(allowed, ranked, fixed=fixed, cost=cost, scope=scope, normalize=normalize, damage=damage),
        ranking={site.name: ranked[site.name].order for site in sites},
        blocks={site.name: site.block for site in sites},
        competing=tuple(allowed),
    )


class _Ranked(NamedTuple):
    order: Tensor  # columns, best first
    values: list[float]  # their scores

    @classmethod
    def of(cls, scores: Tensor) -> _Ranked:
        values, order = scores.sort(descending=True, stable=True)
        return cls(order, values.tolist())


def _ladder(
    allowed: Mapping[str, Sequence[int]],
    ranked: Mapping[str, _Ranked],
    *,
    fixed: Mapping[str, int],
    cost: Cost | None,
    scope: Scope,
    normalize: Normalize,
    damage: Mapping[str, Curve] | None,
) -> Ladder:
    if scope == "uniform":
        return uniform_ladder(allowed, fixed=fixed)
    steps: list[Step] = []
    for name, widths in allowed.items():
        if normalize == "damage":
            if damage is None or name not in damage:
                raise ValueError(f"normalize 'damage' needs a damage curve of {name}; see measure_damage")
            measured = [width for width, _ in damage[name]]
            if not measured or min(measured) > widths[0] or max(measured) < widths[-1]:
                raise ValueError(
                    f"the damage curve of {name} has the widths {sorted(measured)}; it must reach from "
                    f"{widths[0]}, the least allowed, to {widths[-1]}: measure these too, or raise min_width"
                )
            steps += damage_steps(name, widths, damage[name], cost=cost.per_neuron[name] if cost else 1.0)
        else:
            values = ranked[name].values
            steps += score_steps(name, widths, values, scale=_mean(name, values) if normalize == "mean" else 1.0)
    return valued_ladder(steps, allowed=allowed, fixed=fixed)


def _mean(name: str, values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    if mean <= 0:
        raise ValueError(f"normalize 'mean' needs scores of a positive mean; that of {name} is {mean:g}")
    return mean


def _check_ratio(what: str, ratio: float) -> None:
    if not 0 <= ratio < 1:
        raise ValueError(f"{what} {ratio:g}: must be in [0, 1) - the fraction of MLP neurons removed")


def _check_choice(what: str, got: str, allowed: Sequence[str]) -> None:
    if got not in allowed:
        raise ValueError(f"{what} {got!r}: choose from {', '.join(allowed)}")


def _check_min_width(site: NeuronSite, min_width: int) -> None:
    if not 1 <= min_width <= site.width:
        raise ValueError(
            f"min_width {min_width}: block {site.block} has {site.width} neurons; choose 1 … {site.width}, or exclude "
            "the block"
        )


def _check_blocks(sites: Sequence[NeuronSite], *, block_ratios: Collection[int], excluded: Collection[int]) -> None:
    blocks = sorted({site.block for site in sites})
    unknown = sorted({*block_ratios, *excluded}.difference(blocks))
    if unknown:
        raise ValueError(f"block {unknown[0]} does not exist; the model has blocks {blocks[0]} … {blocks[-1]}")
    both = sorted(set(block_ratios).intersection(excluded))
    if both:
        raise ValueError(f"block {both[0]} is excluded and has a ratio of its own; say one of the two")
    if set(excluded) == set(blocks):
        raise ValueError("every block is excluded, so nothing can be pruned; leave one in")
