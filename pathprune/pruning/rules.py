"""Rules for the widths that pruning may choose."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # a recipe has rules and must load without torch
    from pathprune.models.seam import NeuronSite

Scope = Literal["uniform", "global"]
Normalize = Literal["none", "mean", "damage"]


@dataclass(frozen=True)
class WidthRules:
    """Rules for the kept width of every block; `make_plan` documents the fields.

    Raises ValueError for values out of range.
    """

    scope: Scope = "uniform"
    normalize: Normalize = "none"
    round_to: int = 1
    min_width: int = 1
    block_ratios: Mapping[int, float] = field(default_factory=dict)
    exclude_blocks: Collection[int] = ()

    def __post_init__(self) -> None:
        for block, ratio in self.block_ratios.items():
            check_ratio(f"block_ratios[{block}]", ratio)
        _check_choice("scope", self.scope, allowed=get_args(Scope))
        _check_choice("normalize", self.normalize, allowed=get_args(Normalize))
        if self.round_to < 1:
            raise ValueError(f"round_to is {self.round_to}; kept widths are multiples of it, so choose at least 1")

    def check_blocks(self, sites: Sequence[NeuronSite]) -> None:
        """Raise ValueError if the rules name unknown blocks, contradict each other or exclude every block."""
        blocks = sorted({site.block for site in sites})
        unknown = sorted({*self.block_ratios, *self.exclude_blocks}.difference(blocks))
        if unknown:
            raise ValueError(f"block {unknown[0]} does not exist; choose from blocks {blocks[0]} … {blocks[-1]}")
        both = sorted(set(self.block_ratios).intersection(self.exclude_blocks))
        if both:
            raise ValueError(f"block {both[0]} is in both block_ratios and exclude_blocks; remove it from one of them")
        if set(self.exclude_blocks) == set(blocks):
            raise ValueError("exclude_blocks names every block, so nothing can be pruned; leave at least one block out")

    def allowed_widths(self, site: NeuronSite) -> list[int]:
        """Return the widths that the site may be narrowed to, ascending; the last is its dense width."""
        if not 1 <= self.min_width <= site.width:
            raise ValueError(
                f"min_width is {self.min_width}, but block {site.block} has {site.width} neurons; choose "
                f"1 … {site.width}, or exclude the block"
            )
        return list_allowed_widths(site.width, round_to=self.round_to, min_width=self.min_width)


def list_allowed_widths(width: int, *, round_to: int, min_width: int) -> list[int]:
    """Return the dense width and all smaller multiples of `round_to` that are at least `min_width`, ascending."""
    smallest = math.ceil(min_width / round_to) * round_to
    return [*range(smallest, width, round_to), width]


def check_ratio(name: str, ratio: float) -> None:
    """Raise ValueError unless `ratio` is at least 0 and less than 1."""
    if not 0 <= ratio < 1:
        raise ValueError(f"{name} {ratio:g} is out of range; a ratio is the fraction removed: at least 0, less than 1")


def _check_choice(name: str, value: str, *, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(allowed)}")
