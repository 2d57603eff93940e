"""Scores and a budget -> a plan: which neurons every site keeps.

Ratios are the fraction *removed*. A block's kept width is one of its *allowed widths*: its dense width, and every
multiple of `round_to` below it that is at least `min_width`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pathprune.models.seam import NeuronSite
from pathprune.scoring.scores import Scores, checked_scores

_LOGGER = logging.getLogger(__name__)


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


def make_plan(
    scores: Scores,
    *,
    sites: Sequence[NeuronSite],
    ratio: float = 0.5,
    scope: Literal["uniform", "global"] = "uniform",
    normalize: Literal["none", "mean"] = "none",
    round_to: int = 1,
    min_width: int = 1,
    block_ratios: Mapping[int, float] | None = None,
    exclude_blocks: Collection[int] = (),
) -> PrunePlan:
    """Keep the best-scored neurons of each site; equal scores are kept in order of site, then column.

    - scope: `uniform` removes `ratio` of every block: its kept width is the allowed width nearest to what is asked,
      the wider of two. `global` removes the lowest-scored neurons wherever they are, until `ratio` of all that compete
      is gone, to within `round_to / 2` neurons; a block that reaches its smallest allowed width gives no more, others
      give in its place.
    - normalize: how `global` makes blocks comparable: `none` takes scores as they are, since it is for the criterion to
      say (a loss change, LAMP and path mass compare across blocks); `mean` divides by the block's mean, for those that
      do not (a variance or a weight norm depends on the block's scale).
    - block_ratios: blocks with a ratio of their own; they do not compete with the others.
    - exclude_blocks: blocks that keep every neuron.

    Raises ValueError for settings out of range, and where `min_width` makes the total of `global` impossible. A uniform
    block that `min_width` keeps above its ratio is logged.
    """
    _check_ratio("ratio", ratio)
    block_ratios = dict(block_ratios or {})
    for block, own_ratio in block_ratios.items():
        _check_ratio(f"ratio of block {block}", own_ratio)
    _check_blocks(sites, block_ratios=block_ratios, excluded=exclude_blocks)
    _check_choice("scope", scope, ("uniform", "global"))
    _check_choice("normalize", normalize, ("none", "mean"))
    if round_to < 1:
        raise ValueError(f"round_to {round_to}: must be at least 1, the number that kept widths are multiples of")

    ranked = {name: _Ranked.of(site_scores) for name, site_scores in checked_scores(scores, sites=sites).items()}
    keep = {site.name: site.width for site in sites}
    competing = []
    for site in sites:
        if site.block in exclude_blocks:
            continue
        _check_min_width(site, min_width)
        own = block_ratios.get(site.block, ratio if scope == "uniform" else None)
        if own is None:
            competing.append(site)
        else:
            keep[site.name] = _nearest_width(site, ratio=own, round_to=round_to, min_width=min_width)
    keep |= _compete(competing, ranked, ratio=ratio, normalize=normalize, round_to=round_to, min_width=min_width)
    return PrunePlan(
        kept={site.name: ranked[site.name].order[: keep[site.name]].sort().values for site in sites},
        widths={site.name: site.width for site in sites},
        blocks={site.name: site.block for site in sites},
    )


class _Ranked(NamedTuple):
    order: Tensor  # columns, best first
    values: Tensor  # their scores

    @classmethod
    def of(cls, scores: Tensor) -> _Ranked:
        values, order = scores.sort(descending=True, stable=True)
        return cls(order, values)


def _allowed_widths(site: NeuronSite, *, round_to: int, min_width: int) -> list[int]:
    """Ascending, at least one."""
    smallest = math.ceil(min_width / round_to) * round_to
    return [*range(smallest, site.width, round_to), site.width]


def _nearest_width(site: NeuronSite, *, ratio: float, round_to: int, min_width: int) -> int:
    asked = site.width * (1 - ratio)
    allowed = _allowed_widths(site, round_to=round_to, min_width=min_width)
    # rounded, since 15 * (1 - 0.9) is not 1.5 in binary; the wider of two equally near
    kept = min(allowed, key=lambda width: (round(abs(width - asked), 9), -width))
    if kept == allowed[0] and kept - asked > max(1, round_to / 2):
        _LOGGER.warning(
            "block %d keeps %d of %d neurons where ratio %g asks for %g: min_width %d and round_to %d allow no fewer",
            *(site.block, kept, site.width, ratio, asked, min_width, round_to),
        )
    return kept


def _compete(
    sites: Sequence[NeuronSite],
    ranked: Mapping[str, _Ranked],
    *,
    ratio: float,
    normalize: str,
    round_to: int,
    min_width: int,
) -> dict[str, int]:
    """Kept widths that together keep `1 - ratio`, by score; each site's neurons come in steps of allowed widths."""
    allowed = {site.name: _allowed_widths(site, round_to=round_to, min_width=min_width) for site in sites}
    keep = {name: widths[0] for name, widths in allowed.items()}
    width = sum(site.width for site in sites)
    asked = width * (1 - ratio)
    reached = sum(keep.values())
    if reached - asked > max(1, round_to / 2):
        raise ValueError(
            f"ratio {ratio:g} cannot be met with min_width {min_width} and round_to {round_to}: at most "
            f"{1 - reached / width:.4g} of these {width} neurons can be removed; lower the ratio or min_width"
        )
    steps = sorted(
        (step for site in sites for step in _steps(site.name, allowed[site.name], ranked[site.name], normalize)),
        key=lambda step: -step.score,
    )
    for step in steps:
        if round(reached + step.size / 2 - asked, 9) > 0:
            break
        keep[step.name] += step.size
        reached += step.size
    return keep


class _Step(NamedTuple):
    name: str
    size: int
    score: float


def _steps(name: str, widths: Sequence[int], ranked: _Ranked, normalize: str) -> Iterator[_Step]:
    """The steps from each allowed width of a site to the next, with the mean score of the neurons they add."""
    values = ranked.values.tolist()
    scale = 1.0
    if normalize == "mean":
        scale = math.fsum(values) / len(values)
        if scale <= 0:
            raise ValueError(f"normalize 'mean' needs scores of a positive mean; that of {name} is {scale:g}")
    score = math.inf
    for low, high in pairwise(widths):
        # never above the step before, not even by rounding, so that sorting leaves a site's steps in order
        score = min(score, math.fsum(values[low:high]) / (high - low) / scale)
        yield _Step(name, high - low, score)


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
