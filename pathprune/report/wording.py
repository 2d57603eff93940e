"""Numbers and lists as a page writes them."""

from __future__ import annotations

from collections.abc import Sequence

from pathprune.pruning import Budget
from pathprune.pruning.budget import UNITS


def percent(share: float, digits: int = 0) -> str:
    """0.5 -> 50 %."""
    return f"{100 * share:.{digits}f} %"


def interval(ci: Sequence[float]) -> str:
    """An interval of shares, in percent: [97.8, 98.7]."""
    return f"[{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]"


def points(difference: float) -> str:
    """A difference of shares in points, with its sign unless it is nothing."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def points_interval(ci: Sequence[float]) -> str:
    """An interval of differences of shares, in points."""
    return f"[{points(ci[0])}, {points(ci[1])}]"


def millions(number: float) -> str:
    """183,000,000 -> 183 M, with three digits where there are fewer."""
    size = number / 1e6
    return f"{size:,.{0 if size >= 100 else 1 if size >= 10 else 2}f} M"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def listed(words: Sequence[str], *, at_most: int | None = None) -> str:
    """`a`, `b` and `c`; what is beyond `at_most` is counted."""
    quoted = [f"`{word}`" for word in words]
    if at_most is not None and len(quoted) > at_most:
        quoted = [*quoted[:at_most], f"{len(quoted) - at_most} more"]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def lowered(sentence: str) -> str:
    """A sentence's beginning as it is inside of one."""
    return sentence[0].lower() + sentence[1:]


def budget_words(budget: Budget) -> str:
    """What a budget asks to remove, at the start of a sentence: 50 % of MLP neurons removed."""
    if budget.kind == "max-drop":
        return f"At most {budget.amount:g} points lost"
    return f"{percent(budget.amount)} of {UNITS[budget.kind]} removed"
