"""Tests of budgets: the nearest rung by hand, and searches by few measurements."""

import pytest

from pathprune.pruning.allocation import Ladder
from pathprune.pruning.budget import (
    Budget,
    BudgetError,
    Cost,
    ShareEstimate,
    find_nearest_rung,
    search_measured_rung,
    search_narrowest_rung,
)

SHARES = [index / 200 for index in range(151)]  # removed on every rung, 0 … 0.75


def test_the_nearest_rung_is_chosen_and_the_wider_of_two():
    removed = [0.0, 0.2, 0.4, 0.6]
    for ratio, rung in {0.0: 0, 0.09: 0, 0.1: 0, 0.11: 1, 0.2: 1, 0.3: 1, 0.31: 2, 0.6: 3, 0.75: 3}.items():
        assert find_nearest_rung(removed, ratio=ratio, total="neurons") == rung


def test_a_share_beyond_the_last_rung_by_more_than_a_point_and_a_step_is_refused():
    fine = [index / 1000 for index in range(401)]
    assert find_nearest_rung(fine, ratio=0.405, total="MACs") == 400
    with pytest.raises(BudgetError, match=r"no plan removes 0\.42 of MACs: at most 0\.4 can be removed; ask for 0\.4"):
        find_nearest_rung(fine, ratio=0.42, total="MACs")
    with pytest.raises(BudgetError, match=r"no plan removes 0\.1 of MACs: at least 0\.25 can be removed"):
        find_nearest_rung([0.25, 0.26], ratio=0.1, total="MACs")


def test_removed_shares_are_fractions_of_the_whole_models_cost():
    ladder = Ladder({"a": 4, "b": 3}, [{"a": 2}, {"a": 1, "b": 1}])
    cost = Cost(total=100.0, per_neuron={"a": 10.0, "b": 5.0})
    assert cost.compute_removed_shares(ladder, dense={"a": 4, "b": 4}) == pytest.approx([0.05, 0.25, 0.45])


def test_budgets_are_formatted_for_readers_and_for_file_names():
    texts = [str(Budget("neurons", 0.5)), str(Budget("macs", 0.4)), str(Budget("max-drop", 1.0))]
    assert texts == ["50%", "40% of MACs", "a drop of 1 at most"]
    assert [Budget("neurons", 0.5).slug, Budget("macs", 0.4).slug] == ["0.5", "macs-0.4"]


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.33, 0.5])
@pytest.mark.parametrize("bend", [1.0, 0.6, 1.7])
def test_a_measured_share_is_met_within_a_point_in_few_measurements(ratio, bend):
    calls = []

    def measure(rung: int) -> ShareEstimate:
        assert rung not in calls
        calls.append(rung)
        share = 0.6 * (SHARES[rung] / 0.75) ** bend
        return ShareEstimate(share, share - 0.02, share + 0.02)

    rung, measured = search_measured_rung(SHARES, ratio=ratio, total="latency", measure=measure)
    assert abs(measured.median - ratio) <= 0.01
    assert measured.median == pytest.approx(0.6 * (SHARES[rung] / 0.75) ** bend)
    assert len(calls) <= 5


def test_noisy_measurements_end_the_search_at_the_nearest_share():
    noise = {150: 0.55, 1: 0.0}

    def measure(rung: int) -> ShareEstimate:
        share = noise.get(rung, 0.2 if rung < 75 else 0.4)  # a staircase without a rung at 0.3
        return ShareEstimate(share, share - 0.12, share + 0.12)

    _, measured = search_measured_rung(SHARES, ratio=0.3, total="latency", measure=measure)
    assert measured.low <= 0.3 <= measured.high


def test_a_latency_that_the_narrowest_model_does_not_reach_is_refused():
    with pytest.raises(BudgetError, match=r"no plan removes 0\.8 of latency: at most 0\.5 can be removed"):
        search_measured_rung(SHARES, ratio=0.8, total="latency", measure=lambda _: ShareEstimate(0.5, 0.45, 0.55))


@pytest.mark.parametrize("edge", [0, 1, 17, 149, 150])
def test_the_narrowest_acceptable_rung_is_found_to_half_a_point(edge):
    calls = []

    def is_acceptable(rung: int) -> bool:
        calls.append(rung)
        return rung <= edge

    rung = search_narrowest_rung(SHARES, is_acceptable=is_acceptable)
    assert rung <= edge
    assert SHARES[edge] - SHARES[rung] <= 0.005
    assert len(calls) == len(set(calls)) <= 9


def test_a_ladder_of_one_rung_is_not_searched():
    assert search_narrowest_rung([0.0], is_acceptable=lambda _: False) == 0
