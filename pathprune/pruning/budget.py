"""Budgets: the share of a model to remove, and the rung of a ladder that comes nearest to this share.

Shares are fractions of the dense model. Neurons, parameters and multiply-accumulates are sums over sites, so their rung
is looked up. Latency and accuracy are measured, so their rung is searched for with few measurements.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from pathprune.pruning.allocation import Ladder

CostKind = Literal["params", "macs"]
"""A cost that is a sum over modules."""
ShareKind = Literal["neurons", CostKind, "latency"]
"""A budget given as the share to remove."""
BudgetKind = Literal[ShareKind, "max-drop"]
"""Any budget; `max-drop` is given in points of top-1 that may be lost."""

UNITS: Mapping[BudgetKind, str] = {
    "neurons": "MLP neurons",
    "params": "parameters",
    "macs": "MACs",
    "latency": "latency",
    "max-drop": "points of top-1",
}

_TOLERANCE = 0.01  # allowed error of a share, unless the ladder's steps are coarser
_RESOLUTION = 0.005  # width in shares of the interval at which a search by accuracy stops


class BudgetError(ValueError):
    """A budget that no plan meets; the message names the nearest possible one."""


class Budget(NamedTuple):
    """An amount to remove: a share of `kind`, or the points of top-1 that may be lost (`max-drop`)."""

    kind: BudgetKind
    amount: float

    def __str__(self) -> str:
        """Format for readers: `50%`, `40% of MACs`, `a drop of 1 at most`."""
        if self.kind == "max-drop":
            return f"a drop of {self.amount:g} at most"
        return f"{self.amount:.0%}" if self.kind == "neurons" else f"{self.amount:.0%} of {UNITS[self.kind]}"

    @property
    def slug(self) -> str:
        """Return the budget as part of a file name; a bare number is a share of neurons."""
        return str(self.amount) if self.kind == "neurons" else f"{self.kind}-{self.amount}"


@dataclass(frozen=True)
class Cost:
    """Cost of the whole dense model, and of each neuron by site; sites without an entry cost nothing."""

    total: float
    per_neuron: Mapping[str, float]

    def compute_removed_shares(self, ladder: Ladder, *, dense: Mapping[str, int]) -> list[float]:
        """Return the share of the total that is removed on every rung; `dense` holds the dense widths."""
        dense_cost = sum(cost * dense[name] for name, cost in self.per_neuron.items())
        return [(dense_cost - cost) / self.total for cost in ladder.sum_per_rung(self.per_neuron)]


class ShareEstimate(NamedTuple):
    """A measured share: median, first and third quartile."""

    median: float
    low: float
    high: float


def find_nearest_rung(shares: Sequence[float], *, ratio: float, total: str) -> int:
    """Return the rung whose removed share is nearest to `ratio`, and the wider of two equally near rungs.

    `shares` rise from rung to rung. `total` names the whole for the error message. Raises BudgetError if the nearest
    share is off by more than 0.01 and by more than the steps next to it.
    """
    above = min(bisect_left(shares, ratio), len(shares) - 1)
    below = max(above - 1, 0)
    # rounded, since two shares may be equally near up to the last bit
    rung = above if round(shares[above] - ratio, 9) < round(ratio - shares[below], 9) else below
    neighbours = shares[max(rung - 1, 0) : rung + 2]
    if round(abs(shares[rung] - ratio) - max(_TOLERANCE, max(neighbours) - min(neighbours)), 9) > 0:
        raise build_budget_error(ratio, nearest=shares[rung], total=total)
    return rung


def build_budget_error(ratio: float, *, nearest: float, total: str) -> BudgetError:
    """Return the error for a ratio that no rung comes near to."""
    bound = "at most" if nearest < ratio else "at least"
    return BudgetError(
        f"no plan removes {ratio:.4g} of {total}: {bound} {nearest:.4g} can be removed; ask for {nearest:.4g}, or "
        "change prune.min_width, round_to, block_ratios or exclude_blocks"
    )


def search_measured_rung(
    expected: Sequence[float], *, ratio: float, total: str, measure: Callable[[int], ShareEstimate]
) -> tuple[int, ShareEstimate]:
    """Return the rung whose measured share is nearest to `ratio`, and the share; measures every rung once at most.

    `expected` are shares that rise from rung to rung and are roughly proportional to the measured ones. The next rung
    to measure is interpolated between the two measured rungs around `ratio`. The search stops within 0.01 of `ratio`,
    or when no rung is left between the two. Raises BudgetError if the narrowest rung falls short of `ratio` by more
    than 0.01 and beyond its quartiles.
    """
    shares = {0: ShareEstimate(0.0, 0.0, 0.0)}
    wide, narrow = 0, len(expected) - 1
    shares[narrow] = measure(narrow) if narrow else shares[0]
    if ratio > max(shares[narrow].high, shares[narrow].median + _TOLERANCE):
        raise build_budget_error(ratio, nearest=shares[narrow].median, total=total)
    while narrow - wide > 1 and min(abs(share.median - ratio) for share in shares.values()) > _TOLERANCE:
        span = shares[narrow].median - shares[wide].median
        part = min(max((ratio - shares[wide].median) / span, 0.0), 1.0) if span > 0 else 0.5
        target = expected[wide] + part * (expected[narrow] - expected[wide])
        rung = min(max(bisect_left(expected, target), wide + 1), narrow - 1)
        shares[rung] = measure(rung)
        wide, narrow = (rung, narrow) if shares[rung].median < ratio else (wide, rung)
    rung = min(shares, key=lambda rung: abs(shares[rung].median - ratio))
    return rung, shares[rung]


def search_narrowest_rung(shares: Sequence[float], *, is_acceptable: Callable[[int], bool]) -> int:
    """Return the narrowest acceptable rung, to 0.005 of `shares`, by bisection; assumes that rung 0 is acceptable.

    If acceptance is not monotonic, the result is one acceptable rung next to an unacceptable one.
    """
    # a last rung that is never acceptable, so that the narrowest real rung can be the result
    bounds = [*shares, shares[-1] + 2 * _RESOLUTION]
    wide, narrow = 0, len(shares)
    while narrow - wide > 1 and bounds[narrow] - bounds[wide] > _RESOLUTION:
        middle = bisect_left(bounds, (bounds[wide] + bounds[narrow]) / 2)
        middle = min(max(middle, wide + 1), narrow - 1)
        wide, narrow = (middle, narrow) if is_acceptable(middle) else (wide, middle)
    return wide
