"""Numbers, lists and budgets as a page writes them."""

from __future__ import annotations

from collections.abc import Sequence

from pathprune.pruning import Budget
from pathprune.pruning.budget import UNITS


def format_percent(share: float, digits: int = 0) -> str:
    """Format a share: 0.5 -> `50 %`."""
    return f"{100 * share:.{digits}f} %"


def format_interval(ci: Sequence[float]) -> str:
    """Format an interval of shares in percent: `[97.8, 98.7]`."""
    return f"[{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]"


def format_points(difference: float) -> str:
    """Format a difference of shares in points, with its sign unless it rounds to zero: -0.02 -> `−2.0`."""
    return format_signed(100 * difference, digits=1)


def format_points_interval(ci: Sequence[float]) -> str:
    """Format an interval of differences of shares in points: `[−3.0, −0.7]`."""
    return f"[{format_points(ci[0])}, {format_points(ci[1])}]"


def format_signed(value: float, *, digits: int) -> str:
    """Format a number with its sign, unless it rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def format_millions(number: float) -> str:
    """Format a number in millions, with up to three digits: 183,000,000 -> `183 M`."""
    size = number / 1e6
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{size:,.{digits}f} M"


def format_p_value(p: float) -> str:
    """Format a p-value with three decimals, or as `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def join_words(words: Sequence[str], *, at_most: int | None = None) -> str:
    """Join words as code, `a`, `b` and `c`; words after the first `at_most` are only counted."""
    parts = [f"`{word}`" for word in words]
    if at_most is not None and len(parts) > at_most:
        parts = [*parts[:at_most], f"{len(parts) - at_most} more"]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def lower_first(sentence: str) -> str:
    """Return a sentence with a lower-case first letter, for use inside another sentence."""
    return sentence[0].lower() + sentence[1:]


def describe_budget(budget: Budget) -> str:
    """Describe a budget as the start of a sentence: `50 % of MLP neurons removed`."""
    if budget.kind == "max-drop":
        return f"At most {budget.amount:g} {'point' if budget.amount == 1 else 'points'} of top-1 lost"
    return f"{format_percent(budget.amount)} of {UNITS[budget.kind]} removed"
