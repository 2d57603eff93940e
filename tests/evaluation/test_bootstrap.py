"""Tests of the bootstrap against closed forms."""

import numpy as np
import pytest

from pathprune.evaluation.bootstrap import excludes_zero, mean_interval, resample_counts


def test_mean_interval_matches_the_normal_approximation():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert mean_interval(values) == mean_interval(values)


def test_resampled_counts_keep_the_number_of_images():
    counts = resample_counts(np.array([30, 60, 10]), num_resamples=4000)
    assert counts.shape == (4000, 3)
    assert (counts.sum(axis=1) == 100).all()
    assert counts.mean(axis=0) == pytest.approx([30, 60, 10], abs=0.5)
    assert counts.std(axis=0) == pytest.approx(np.sqrt([21, 24, 9]), rel=0.05)  # binomial: n p (1 - p)


@pytest.mark.parametrize(("interval", "expected"), [((0.1, 0.2), True), ((-0.2, -0.1), True), ((0.0, 0.1), False)])
def test_interval_excludes_zero(interval, expected):
    assert excludes_zero(interval) is expected
