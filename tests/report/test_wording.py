"""Tests of the wording of numbers, lists and budgets."""

import pytest

from pathprune.pruning import Budget
from pathprune.report.wording import (
    describe_budget,
    format_interval,
    format_millions,
    format_p_value,
    format_percent,
    format_points,
    join_words,
)


def test_numbers_are_rounded_and_have_units() -> None:
    assert (format_percent(0.5), format_percent(0.98765, 1)) == ("50 %", "98.8 %")
    assert format_interval((0.978, 0.9871)) == "[97.8, 98.7]"
    assert [format_points(share) for share in (0.0104, -0.09, 0.0004, -0.0004)] == ["+1.0", "−9.0", "0.0", "0.0"]
    assert [format_millions(number) for number in (1.5e4, 2.7e6, 1.83e7, 1.76e10)] == [
        "0.01 M",
        "2.70 M",
        "18.3 M",
        "17,600 M",
    ]
    assert (format_p_value(0.0004), format_p_value(0.0312)) == ("< 0.001", "0.031")


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "`a`"), (2, "`a` and `b`"), (3, "`a`, `b` and 1 more"), (4, "`a`, `b` and 2 more")],
)
def test_lists_end_with_and(number: int, words: str) -> None:
    assert join_words(["a", "b", "c", "d"][:number], at_most=2) == words


def test_budgets_name_what_is_removed() -> None:
    assert describe_budget(Budget("neurons", 0.5)) == "50 % of MLP neurons removed"
    assert describe_budget(Budget("macs", 0.4)) == "40 % of MACs removed"
    assert describe_budget(Budget("max-drop", 1.0)) == "At most 1 point of top-1 lost"
    assert describe_budget(Budget("max-drop", 0.5)) == "At most 0.5 points of top-1 lost"
