"""Tests of ladders: widths by hand, and allocation by damage against every other allocation."""

from itertools import product

import pytest
import torch

from pathprune.pruning.allocation import (
    Ladder,
    build_uniform_ladder,
    build_value_ladder,
    value_steps_by_damage,
    value_steps_by_score,
)
from pathprune.pruning.rules import list_allowed_widths


def list_widths(ladder: Ladder) -> list[tuple[int, ...]]:
    return [tuple(ladder.widths_at(rung).values()) for rung in range(len(ladder.changes) + 1)]


def test_allowed_widths_are_multiples_down_to_min_width_and_the_dense_width():
    assert list_allowed_widths(20, round_to=8, min_width=1) == [8, 16, 20]
    assert list_allowed_widths(20, round_to=8, min_width=9) == [16, 20]
    assert list_allowed_widths(16, round_to=8, min_width=1) == [8, 16]
    assert list_allowed_widths(4, round_to=8, min_width=1) == [4]


def test_a_uniform_ladder_narrows_sites_of_equal_width_together_and_other_sites_in_turn():
    equal = {"a": [1, 2, 3], "b": [1, 2, 3]}
    assert list_widths(build_uniform_ladder(equal, fixed={})) == [(3, 3), (2, 2), (1, 1)]
    # removed shares halfway through the steps: a 1/8, b 1/4, a 3/8 and 5/8
    mixed = {"a": [1, 2, 3, 4], "b": [1, 2]}
    assert list_widths(build_uniform_ladder(mixed, fixed={})) == [(4, 2), (3, 2), (3, 1), (2, 1), (1, 1)]


def test_fixed_sites_keep_their_width():
    ladder = build_uniform_ladder({"a": [1, 2]}, fixed={"b": 7})
    assert [ladder.widths_at(rung) for rung in (0, 1)] == [{"a": 2, "b": 7}, {"a": 1, "b": 7}]
    assert ladder.sum_per_rung({"a": 10, "b": 1}) == [27, 17]
    assert ladder.sum_per_rung({"a": 10}) == [20, 10]


def test_the_step_of_least_value_is_removed_first():
    allowed = {"a": [1, 2, 4], "b": [1, 3]}
    scores = {"a": [9, 5, 1, 2], "b": [9, 3, 3]}
    steps = [step for name in allowed for step in value_steps_by_score(name, allowed[name], scores[name])]
    assert [step.value for step in steps] == [5, 1.5, 3]
    ladder = build_value_ladder(steps, allowed=allowed, fixed={})
    assert list_widths(ladder) == [(4, 3), (2, 3), (2, 1), (1, 1)]
    assert ladder.sum_per_rung({"a": 1, "b": 1}) == [7, 5, 3, 2]


def test_damage_is_taken_from_the_lower_convex_hull():
    # steps of 5, 1 and 12: the hull runs from (4, 0) through (2, 6) to (1, 18)
    steps = list(value_steps_by_damage("a", [1, 2, 3, 4], [(4, 0.0), (3, 5.0), (2, 6.0), (1, 18.0)], cost=2.0))
    assert [step.value for step in steps] == [6.0, 1.5, 1.5]


def test_damage_is_interpolated_between_measured_widths():
    steps = list(value_steps_by_damage("a", [2, 5, 8], [(8, 0.0), (4, 4.0), (2, 10.0)]))
    assert [step.value for step in steps] == pytest.approx([(10 - 3) / 3, 3 / 3])


@pytest.mark.parametrize("seed", range(10))
def test_every_rung_has_the_least_damage_of_all_widths_with_no_more_neurons(seed):
    generator = torch.Generator().manual_seed(seed)
    allowed = {name: [1, 2, 3, 4, 5] for name in "abc"}
    # convex: each further neuron does more damage
    added = torch.rand(3, 4, generator=generator).sort(dim=1).values
    curves = {
        name: [(width, float(added[i, : 5 - width].sum())) for width in range(5, 0, -1)]
        for i, name in enumerate(allowed)
    }
    steps = [step for name in allowed for step in value_steps_by_damage(name, allowed[name], curves[name])]
    ladder = build_value_ladder(steps, allowed=allowed, fixed={})

    def damage(widths: tuple[int, ...]) -> float:
        return sum(dict(curves[name])[width] for name, width in zip(allowed, widths, strict=True))

    for widths in list_widths(ladder):
        others = [other for other in product(range(1, 6), repeat=3) if sum(other) <= sum(widths)]
        assert damage(widths) == pytest.approx(min(map(damage, others)))
