"""Ladders of widths: the order in which a model is narrowed.

A ladder runs from wide to narrow. A budget only chooses the rung to stop at, so all kinds of budget share one order.
Pure arithmetic on widths, scores and damage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import numpy as np

Curve = Sequence[tuple[int, float]]
"""Damage of narrowing one site: pairs `(width, damage)` from its smallest allowed width to its dense width."""


@dataclass(frozen=True)
class Ladder:
    """Widths by site, ever narrower: rung 0 is `start`, and rung `r + 1` applies `changes[r]` to rung `r`."""

    start: Mapping[str, int]
    changes: Sequence[Mapping[str, int]]

    def widths_at(self, rung: int) -> dict[str, int]:
        """Return the width of every site on a rung."""
        widths = dict(self.start)
        for change in self.changes[:rung]:
            widths.update(change)
        return widths

    def sum_per_rung(self, per_neuron: Mapping[str, float]) -> list[float]:
        """Return, for every rung, the sum of `width * per_neuron[site]`; sites not in `per_neuron` count 0."""
        widths = dict(self.start)

        def apply(total: float, change: Mapping[str, int]) -> float:
            removed = sum(per_neuron.get(name, 0) * (widths[name] - width) for name, width in change.items())
            widths.update(change)
            return total - removed

        start = sum(per_neuron.get(name, 0) * width for name, width in widths.items())
        return list(accumulate(self.changes, apply, initial=start))


class Step(NamedTuple):
    """A step of site `name` from width `low` to the next wider allowed width `high`; `value` is per neuron."""

    name: str
    low: int
    high: int
    value: float


class _UniformStep(NamedTuple):
    """A step of a uniform ladder, in the order of narrowing."""

    removed_share: float  # of the site, halfway through the step
    site_index: int
    name: str
    low: int


def build_uniform_ladder(allowed: Mapping[str, Sequence[int]], *, fixed: Mapping[str, int]) -> Ladder:
    """Return the ladder that removes the same share of every site.

    `allowed` holds ascending widths of the sites to narrow, `fixed` the width of all other sites. Sites of equal width
    share their rungs. Otherwise each rung takes the step whose midpoint has the smallest removed share.
    """
    steps = sorted(
        # rounded, so that equal shares of different widths are equal
        _UniformStep(round(1 - (low + high) / (2 * widths[-1]), 9), index, name, low)
        for index, (name, widths) in enumerate(allowed.items())
        for low, high in pairwise(widths)
    )
    rungs = groupby(steps, key=lambda step: step.removed_share)
    return Ladder(_start(allowed, fixed), [{step.name: step.low for step in rung} for _, rung in rungs])


def build_value_ladder(
    steps: Sequence[Step], *, allowed: Mapping[str, Sequence[int]], fixed: Mapping[str, int]
) -> Ladder:
    """Return the ladder that removes the step of least value first; of equal values, the last in `steps`.

    Within a site, values must not rise with the width.
    """
    by_value = sorted(steps, key=lambda step: -step.value)
    return Ladder(_start(allowed, fixed), [{step.name: step.low} for step in reversed(by_value)])


def _start(allowed: Mapping[str, Sequence[int]], fixed: Mapping[str, int]) -> dict[str, int]:
    return {**fixed, **{name: widths[-1] for name, widths in allowed.items()}}


def value_steps_by_score(
    name: str, widths: Sequence[int], scores: Sequence[float], *, scale: float = 1.0
) -> Iterator[Step]:
    """Yield a site's steps; the value is the mean score of the step's neurons over `scale`.

    `scores` are sorted, best first.
    """
    value = math.inf
    for low, high in pairwise(widths):
        # capped by the step below: rounding of means must not break the order of a site's steps
        value = min(value, math.fsum(scores[low:high]) / (high - low) / scale)
        yield Step(name, low, high, value)


def value_steps_by_damage(name: str, widths: Sequence[int], curve: Curve, *, cost: float = 1.0) -> Iterator[Step]:
    """Yield a site's steps; the value is the damage that one neuron prevents, over its `cost`.

    Damage is interpolated on the lower convex hull of `curve`. On a convex curve no step is worth more than a step
    below it, so removing steps in order of value gives the least damage at every total cost (the Lagrangian optimum of
    a sum over sites).
    """
    hull = _find_lower_hull(curve)
    damage = np.interp(widths, [width for width, _ in hull], [damage for _, damage in hull]).tolist()
    value = math.inf
    for (low, low_damage), (high, high_damage) in pairwise(zip(widths, damage, strict=True)):
        # capped as in value_steps_by_score
        value = min(value, (low_damage - high_damage) / (high - low) / cost)
        yield Step(name, low, high, value)


def _find_lower_hull(curve: Curve) -> list[tuple[int, float]]:
    """Return the points on the lower convex hull of a curve, by width."""
    hull: list[tuple[int, float]] = []
    for width, damage in sorted(curve):
        while len(hull) > 1 and _compute_slope(hull[-2], hull[-1]) >= _compute_slope(hull[-2], (width, damage)):
            hull.pop()
        hull.append((width, damage))
    return hull


def _compute_slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
