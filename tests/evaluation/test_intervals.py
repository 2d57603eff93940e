"""Tests of intervals against closed forms and against the slow bootstrap that draws image indices."""

import numpy as np
import pytest
from outcomes import evaluation

from pathprune.evaluation import compare, retention, top1_ci


def test_wilson_interval_matches_its_formula():
    low, high = top1_ci(evaluation([1] * 8 + [0] * 2))
    z, n, p = 1.959963984540054, 10, 0.8  # Wilson 1927
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (low, high) == pytest.approx((centre - half, centre + half))


def test_wilson_interval_has_a_width_at_0_and_100_percent():
    assert top1_ci(evaluation([1] * 20)) == (pytest.approx(0.8389, abs=1e-4), 1.0)
    assert top1_ci(evaluation([0] * 20)) == (0.0, pytest.approx(0.1611, abs=1e-4))


def images(seed: int, num: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return correlated outcomes of a pruned and a dense model."""
    rng = np.random.default_rng(seed)
    dense = rng.random(num) < 0.8
    return np.where(rng.random(num) < 0.25, rng.random(num) < 0.3, dense), dense


def test_bootstrap_of_counts_matches_bootstrap_of_images():
    pruned, dense = images(0)
    rng = np.random.default_rng(1)
    chosen = rng.integers(len(dense), size=(20_000, len(dense)))
    pruned_correct, dense_correct = pruned[chosen].sum(axis=1), dense[chosen].sum(axis=1)
    kept = retention(evaluation(pruned), evaluation(dense), num_resamples=20_000)
    assert kept.value == pytest.approx(pruned.sum() / dense.sum())
    assert kept.ci == pytest.approx(np.percentile(pruned_correct / dense_correct, [2.5, 97.5]), abs=0.004)
    result = compare(evaluation(pruned), evaluation(dense), num_resamples=20_000)
    differences = (pruned_correct - dense_correct) / len(dense)
    assert result.difference == pytest.approx(pruned.mean() - dense.mean())
    assert result.ci == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=0.005)


def test_paired_interval_depends_on_the_pairing():
    # The accuracies are equal in both comparisons. Outcomes that coincide make the difference more certain.
    coinciding = compare(evaluation([1] * 60 + [0] * 40), evaluation([1] * 50 + [0] * 50))
    opposing = compare(evaluation([1] * 60 + [0] * 40), evaluation([0] * 50 + [1] * 50))
    assert coinciding.difference == opposing.difference == pytest.approx(0.1)
    assert coinciding.ci[1] - coinciding.ci[0] < 0.5 * (opposing.ci[1] - opposing.ci[0])
    assert (coinciding.verdict, opposing.verdict) == ("better", "tie")


def test_model_compared_with_itself_is_a_tie_of_zero_width():
    pruned, _ = images(0)
    result = compare(evaluation(pruned), evaluation(pruned))
    assert (result.difference, result.ci, result.p_value, result.verdict) == (0.0, (0.0, 0.0), 1.0, "tie")
    kept = retention(evaluation(pruned), evaluation(pruned))
    assert (kept.value, kept.ci) == (1.0, (1.0, 1.0))


def test_swapping_the_models_reverses_the_verdict():
    pruned, dense = images(2)
    worse, better = compare(evaluation(pruned), evaluation(dense)), compare(evaluation(dense), evaluation(pruned))
    assert (worse.verdict, better.verdict) == ("worse", "better")
    assert worse.difference == -better.difference
    assert worse.p_value == better.p_value


def test_five_differing_images_give_no_verdict():
    # All five favour one model: the bootstrap interval excludes 0, but McNemar's p is 2 / 2**5.
    result = compare(evaluation([1] * 100), evaluation([1] * 95 + [0] * 5))
    assert result.ci[0] > 0
    assert result.p_value == pytest.approx(0.0625)
    assert result.verdict == "tie"
    assert compare(evaluation([1] * 100), evaluation([1] * 94 + [0] * 6)).verdict == "better"


def test_intervals_are_reproducible_and_follow_the_generator():
    pruned, dense = (evaluation(correct) for correct in images(3))
    assert compare(pruned, dense) == compare(pruned, dense)
    one, two = (retention(pruned, dense, rng=np.random.default_rng(s), num_resamples=50) for s in (1, 2))
    assert one.value == two.value
    assert one.ci != two.ci


def test_intervals_cover_at_the_stated_rate():
    covered = 0
    for seed in range(200):
        pruned, dense = images(seed, num=400)
        low, high = retention(evaluation(pruned), evaluation(dense), num_resamples=1000).ci
        covered += low <= (0.75 * 0.8 + 0.25 * 0.3) / 0.8 <= high
    assert 180 <= covered <= 198  # 95 % of 200, three standard deviations


def test_undefined_retention_and_other_images_raise():
    with pytest.raises(ValueError, match="retention is undefined: 'dense' classifies none of 3 images correctly"):
        retention(evaluation([1, 0, 0]), evaluation([0, 0, 0], name="dense"))
    with pytest.raises(ValueError, match="not evaluated on the same images"):
        compare(evaluation([1, 0]), evaluation([1, 0, 1]))


def test_resamples_without_a_correct_dense_prediction_are_dropped():
    low, high = retention(evaluation([1, 1, 0]), evaluation([1, 0, 0])).ci
    assert np.isfinite([low, high]).all()
