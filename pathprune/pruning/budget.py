"""Budgets: how much of the model is to go, in what, and which rung of a ladder comes nearest to it.

Shares are fractions of the dense model. Neurons, parameters and multiply-accumulates are sums over sites, so the rung
is looked up; latency and accuracy are measured, so the rung is searched for with few measurements.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pathprune.pruning.allocation import Ladder

BudgetKind = Literal["neurons", "params", "macs", "latency", "max-drop"]

UNITS: Mapping[BudgetKind, str] = {
    "neurons": "MLP neurons",
    "params": "parameters",
    "macs": "MACs",
    "latency": "latency",
    "max-drop": "points of top-1",
}

_TOLERANCE = 0.01  # what a share may be off by where steps are finer
_RESOLUTION = 0.005  # the share at which a search for an accuracy stops


class BudgetError(ValueError):
    """No plan meets the budget; the message names the nearest there is."""


class Budget(NamedTuple):
    """What is asked for: the share of `kind` that goes, or the points of top-1 that may be lost (`max-drop`)."""

    kind: BudgetKind
    amount: float

    def __str__(self) -> str:
        """As people say it: `50%`, `40% of MACs`, `a drop of 1 at most`."""
        if self.kind == "max-drop":
            return f"a drop of {self.amount:g} at most"
        return f"{self.amount:.0%}" if self.kind == "neurons" else f"{self.amount:.0%} of {UNITS[self.kind]}"

    @property
    def slug(self) -> str:
        """As a part of file names; a bare number is a share of neurons."""
        return str(self.amount) if self.kind == "neurons" else f"{self.kind}-{self.amount}"


@dataclass(frozen=True)
class Cost:
    """What the whole dense model costs, and each neuron of a site; sites that are not named cost nothing."""

    total: float
    per_neuron: Mapping[str, float]

    def removed(self, ladder: Ladder, *, dense: Mapping[str, int]) -> list[float]:
        """The share of the total that is gone on every rung, given the dense widths."""
        whole = sum(weight * dense[name] for name, weight in self.per_neuron.items())
        return [(whole - left) / self.total for left in ladder.weights(self.per_neuron)]


class Measured(NamedTuple):
    """A share as measured: median and quartiles."""

    median: float
    low: float
    high: float


def nearest_rung(removed: Sequence[float], *, ratio: float, of: str) -> int:
    """The rung whose removed share is nearest to `ratio`, the wider of two equally near; shares rise from rung to rung.

    Raises BudgetError where it is off by more than a point and more than the step beside it.
    """
    above = min(bisect_left(removed, ratio), len(removed) - 1)
    below = max(above - 1, 0)
    # rounded, since two shares may be equally near up to the last bit
    rung = above if round(removed[above] - ratio, 9) < round(ratio - removed[below], 9) else below
    beside = removed[max(rung - 1, 0) : rung + 2]
    if round(abs(removed[rung] - ratio) - max(_TOLERANCE, max(beside) - min(beside)), 9) > 0:
        raise unmet(ratio, nearest=removed[rung], of=of)
    return rung


def unmet(ratio: float, *, nearest: float, of: str) -> BudgetError:
    """The error for a share that no rung comes near to."""
    least_or_most = "at most" if nearest < ratio else "at least"
    return BudgetError(
        f"no plan removes {ratio:.4g} of {of}: {least_or_most} {nearest:.4g} can go; "
        f"ask for {nearest:.4g}, or change prune.min_width, round_to, block_ratios or exclude_blocks"
    )


def measured_rung(
    expected: Sequence[float], *, ratio: float, of: str, measure: Callable[[int], Measured]
) -> tuple[int, Measured]:
    """The rung whose measured share meets `ratio`, within a point or within its quartiles at the end of the search.

    `expected` are shares, rising from rung to rung, that the measured ones are roughly proportional to: the next rung
    to measure is read off a line through the two around `ratio`. Each rung is measured once at most. Raises BudgetError
    where the narrowest rung falls short of `ratio` by more than a point and beyond its quartiles.
    """
    known = {0: Measured(0.0, 0.0, 0.0)}
    wide, narrow = 0, len(expected) - 1
    known[narrow] = measure(narrow) if narrow else known[0]
    if ratio > max(known[narrow].high, known[narrow].median + _TOLERANCE):
        raise unmet(ratio, nearest=known[narrow].median, of=of)
    while narrow - wide > 1 and min(abs(each.median - ratio) for each in known.values()) > _TOLERANCE:
        span = known[narrow].median - known[wide].median
        part = min(max((ratio - known[wide].median) / span, 0.0), 1.0) if span > 0 else 0.5
        aim = expected[wide] + part * (expected[narrow] - expected[wide])
        rung = min(max(bisect_left(expected, aim), wide + 1), narrow - 1)
        known[rung] = measure(rung)
        wide, narrow = (rung, narrow) if known[rung].median < ratio else (wide, rung)
    rung = min(known, key=lambda each: abs(known[each].median - ratio))
    return rung, known[rung]


def narrowest_rung(expected: Sequence[float], *, holds: Callable[[int], bool]) -> int:
    """The narrowest rung on which `holds`, to half a point of `expected` shares, by bisection; rung 0 is taken to hold.

    Where `holds` is not monotonous, it is one rung that holds beside one that does not.
    """
    shares = [*expected, expected[-1] + 2 * _RESOLUTION]  # beyond the last rung nothing holds
    wide, narrow = 0, len(expected)
    while narrow - wide > 1 and shares[narrow] - shares[wide] > _RESOLUTION:
        middle = bisect_left(shares, (shares[wide] + shares[narrow]) / 2)
        middle = min(max(middle, wide + 1), narrow - 1)
        wide, narrow = (middle, narrow) if holds(middle) else (wide, middle)
    return wide
