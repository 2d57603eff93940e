"""Families of comparisons against the textbook's correction and single comparisons."""

import numpy as np
import pytest
from outcomes import evaluation

from pathprune.evaluation import compare, compare_all, mean_retention, retention
from pathprune.evaluation.significance import holm


def test_holm_is_the_textbooks():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def outcomes(seed: int, accuracy: float) -> np.ndarray:
    return np.random.default_rng(seed).random(500) < accuracy


def test_two_models_are_one_comparison():
    a, b = evaluation(outcomes(0, 0.9)), evaluation(outcomes(1, 0.7))
    (pair,) = compare_all({"a": [a], "b": [b]})
    assert pair.result == compare(a, b)
    assert pair.result.verdict == "better"
    turned = pair.reversed
    assert (turned.a, turned.b, turned.result.verdict) == ("b", "a", "worse")
    assert turned.result.difference == compare(b, a).difference
    assert turned.result.ci == pytest.approx(compare(b, a).ci, abs=0.005)


def test_what_is_better_alone_may_tie_among_many():
    right = np.ones(400, dtype=bool)
    wrong = right.copy()
    wrong[:7] = False  # p = 2 / 2**7 = 0.0156 alone
    models = {"best": [evaluation(right)], "worst": [evaluation(wrong)]}
    (alone,) = compare_all(models)
    assert (alone.result.p_value, alone.result.verdict) == (2 / 2**7, "better")
    models |= {name: [evaluation(right)] for name in ("c", "d", "e")}
    among = next(pair for pair in compare_all(models) if (pair.a, pair.b) == ("best", "worst"))
    assert among.result.p_value > 0.05
    assert among.result.verdict == "tie"
    assert among.result.ci == alone.result.ci


def test_seeds_are_averaged_and_must_agree():
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


def test_retention_over_seeds_is_their_mean_and_surer_than_one() -> None:
    dense = evaluation(outcomes(9, 0.9))
    pruned = [evaluation(dense.correct & outcomes(seed, 0.8)) for seed in range(4)]
    each = [retention(one, dense) for one in pruned]
    found = mean_retention(pruned, dense)
    assert mean_retention(pruned[:1], dense) == each[0]
    assert found.value == pytest.approx(np.mean([one.value for one in each]))
    assert found.ci[0] < found.value < found.ci[1]
    assert found.ci[1] - found.ci[0] < 0.75 * (each[0].ci[1] - each[0].ci[0])
