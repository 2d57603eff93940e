"""Tests of families of comparisons against hand-computed corrections and single comparisons."""

import numpy as np
import pytest
from outcomes import evaluation

from pathprune.evaluation import compare, compare_all, mean_retention, retention
from pathprune.evaluation.significance import holm


def test_holm_matches_hand_computed_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def outcomes(seed: int, accuracy: float) -> np.ndarray:
    return np.random.default_rng(seed).random(500) < accuracy


def test_two_models_make_one_comparison():
    a, b = evaluation(outcomes(0, 0.9)), evaluation(outcomes(1, 0.7))
    (pair,) = compare_all({"a": [a], "b": [b]})
    assert pair.result == compare(a, b)
    assert pair.result.verdict == "better"
    swapped = pair.swap()
    assert (swapped.a, swapped.b, swapped.result.verdict) == ("b", "a", "worse")
    assert swapped.result.difference == compare(b, a).difference
    assert swapped.result.ci == pytest.approx(compare(b, a).ci, abs=0.005)


def test_correction_turns_a_verdict_into_a_tie_in_a_larger_family():
    all_correct = np.ones(400, dtype=bool)
    seven_wrong = all_correct.copy()
    seven_wrong[:7] = False  # p = 2 / 2**7 = 0.0156 for a single pair
    models = {"best": [evaluation(all_correct)], "worst": [evaluation(seven_wrong)]}
    (single,) = compare_all(models)
    assert (single.result.p_value, single.result.verdict) == (2 / 2**7, "better")
    models |= {name: [evaluation(all_correct)] for name in ("c", "d", "e")}
    corrected = next(pair for pair in compare_all(models) if (pair.a, pair.b) == ("best", "worst"))
    assert corrected.result.p_value > 0.05
    assert corrected.result.verdict == "tie"
    assert corrected.result.ci == single.result.ci


def test_verdict_over_seeds_needs_agreement_of_all_seeds():
    good, bad = [evaluation(outcomes(seed, 0.9)) for seed in (0, 1)], [evaluation(outcomes(s, 0.6)) for s in (2, 3)]
    (pair,) = compare_all({"good": good, "bad": bad})
    each = [compare(a, b).difference for a, b in zip(good, bad, strict=True)]
    assert pair.result.difference == pytest.approx(np.mean(each))
    assert pair.result.verdict == "better"
    assert pair.result.ci[0] < pair.result.difference < pair.result.ci[1]
    (pair,) = compare_all({"a": [good[0], bad[0]], "b": [bad[0], good[1]]})
    assert (pair.result.p_value, pair.result.verdict) == (1.0, "tie")
    with pytest.raises(ValueError, match="evaluations of 2 seeds, the other of 1"):
        compare_all({"a": good, "b": bad[:1]})


def test_retention_over_seeds_is_the_mean_with_a_narrower_interval() -> None:
    dense = evaluation(outcomes(9, 0.9))
    pruned = [evaluation(dense.correct & outcomes(seed, 0.8)) for seed in range(4)]
    single = [retention(one, dense) for one in pruned]
    mean = mean_retention(pruned, dense)
    assert mean_retention(pruned[:1], dense) == single[0]
    assert mean.value == pytest.approx(np.mean([one.value for one in single]))
    assert mean.ci[0] < mean.value < mean.ci[1]
    assert mean.ci[1] - mean.ci[0] < 0.75 * (single[0].ci[1] - single[0].ci[0])
