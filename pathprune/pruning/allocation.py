"""Which widths a model passes through as neurons go: pure arithmetic on widths, scores and damage.

A *ladder* is the order in which a model is narrowed, from wide to narrow. A budget only says on which rung to stop, so
that all kinds of budget share one order, and every rung is a model that could be asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import numpy as np

Curve = Sequence[tuple[int, float]]
"""How much harm each width of a site does: `(width, damage)`, from its smallest allowed to its dense width."""


@dataclass(frozen=True)
class Ladder:
    """Ever narrower widths by site: rung 0 is `start`, and rung `r + 1` sets the widths in `changes[r]`."""

    start: Mapping[str, int]
    changes: Sequence[Mapping[str, int]]

    @property
    def last(self) -> int:
        """The narrowest rung."""
        return len(self.changes)

    def widths(self, rung: int) -> dict[str, int]:
        """The width of every site on a rung."""
        widths = dict(self.start)
        for change in self.changes[:rung]:
            widths.update(change)
        return widths

    def weights(self, per_neuron: Mapping[str, float]) -> list[float]:
        """What the neurons of every rung weigh together, given the weight of a neuron by site; 0 where it is not."""
        widths = dict(self.start)

        def narrowed(weight: float, change: Mapping[str, int]) -> float:
            lost = sum(per_neuron.get(name, 0) * (widths[name] - width) for name, width in change.items())
            widths.update(change)
            return weight - lost

        start = sum(per_neuron.get(name, 0) * width for name, width in widths.items())
        return list(accumulate(self.changes, narrowed, initial=start))


class Step(NamedTuple):
    """From one allowed width of a site to the next wider one, and what a neuron of it is worth."""

    name: str
    low: int
    high: int
    value: float


def allowed_widths(width: int, *, round_to: int, min_width: int) -> list[int]:
    """The dense width and every multiple of `round_to` below it that is at least `min_width`; ascending."""
    smallest = math.ceil(min_width / round_to) * round_to
    return [*range(smallest, width, round_to), width]


def uniform_ladder(allowed: Mapping[str, Sequence[int]], *, fixed: Mapping[str, int]) -> Ladder:
    """The same share of every site at a time; where sites differ in width, each rung takes the next one due."""
    due = sorted(
        (round(1 - (low + high) / (2 * widths[-1]), 9), place, name, low)
        for place, (name, widths) in enumerate(allowed.items())
        for low, high in pairwise(widths)
    )
    changes = [{name: low for _, _, name, low in rung} for _, rung in groupby(due, key=lambda change: change[0])]
    return Ladder({**fixed, **{name: widths[-1] for name, widths in allowed.items()}}, changes)


def valued_ladder(steps: Sequence[Step], *, allowed: Mapping[str, Sequence[int]], fixed: Mapping[str, int]) -> Ladder:
    """The steps of least value first, wherever they are; of equal ones, the last in order.

    The steps of one site must not rise in value with its width.
    """
    by_value = sorted(steps, key=lambda step: -step.value)
    changes = [{step.name: step.low} for step in reversed(by_value)]
    return Ladder({**fixed, **{name: widths[-1] for name, widths in allowed.items()}}, changes)


def score_steps(name: str, widths: Sequence[int], scores: Sequence[float], *, scale: float = 1.0) -> Iterator[Step]:
    """A site's steps by the mean score, over `scale`, of the neurons they add; `scores` are sorted, best first."""
    value = math.inf
    for low, high in pairwise(widths):
        # never above the step before, not even by rounding, so that sorting leaves a site's steps in order
        value = min(value, math.fsum(scores[low:high]) / (high - low) / scale)
        yield Step(name, low, high, value)


def damage_steps(name: str, widths: Sequence[int], curve: Curve, *, cost: float = 1.0) -> Iterator[Step]:
    """A site's steps by the damage that a neuron spares, over its `cost`.

    Between measured widths the damage is read off their lower convex hull, so that a step is never worth more than the
    ones below it and taking steps in order of value gives the least damage at every total cost (the Lagrangian optimum
    of a sum over sites).
    """
    hull = _lower_hull(curve)
    damage = np.interp(widths, [width for width, _ in hull], [damage for _, damage in hull]).tolist()
    value = math.inf
    for (low, low_damage), (high, high_damage) in pairwise(zip(widths, damage, strict=True)):
        value = min(value, (low_damage - high_damage) / (high - low) / cost)  # as in score_steps
        yield Step(name, low, high, value)


def _lower_hull(curve: Curve) -> list[tuple[int, float]]:
    """The points of a curve that no line between two others runs below, by width."""
    hull: list[tuple[int, float]] = []
    for width, damage in sorted(curve):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (width, damage)):
            hull.pop()
        hull.append((width, damage))
    return hull


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
