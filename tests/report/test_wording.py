"""Numbers as people read them."""

import pytest

from pathprune.pruning import Budget
from pathprune.report.wording import budget_words, interval, listed, millions, p_value, percent, points


def test_numbers_are_written_for_people() -> None:
    assert (percent(0.5), percent(0.98765, 1)) == ("50 %", "98.8 %")
    assert interval((0.978, 0.9871)) == "[97.8, 98.7]"
    assert [points(share) for share in (0.0104, -0.09, 0.0004, -0.0004)] == ["+1.0", "−9.0", "0.0", "0.0"]
    assert [millions(number) for number in (1.5e4, 2.7e6, 1.83e7, 1.76e10)] == [
        "0.01 M",
        "2.70 M",
        "18.3 M",
        "17,600 M",
    ]
    assert (p_value(0.0004), p_value(0.0312)) == ("< 0.001", "0.031")


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "`a`"), (2, "`a` and `b`"), (3, "`a`, `b` and 1 more"), (4, "`a`, `b` and 2 more")],
)
def test_lists_end_in_and(number: int, words: str) -> None:
    assert listed(["a", "b", "c", "d"][:number], at_most=2) == words


def test_budgets_say_what_is_removed() -> None:
    assert budget_words(Budget("neurons", 0.5)) == "50 % of MLP neurons removed"
    assert budget_words(Budget("macs", 0.4)) == "40 % of MACs removed"
    assert budget_words(Budget("max-drop", 1.0)) == "At most 1 points lost"
