"""95 % intervals for one model's accuracy, and for two models evaluated on the same images.

A single accuracy gets Wilson's score interval. Unlike the bootstrap interval, it has a width at 0 % and 100 % too.
Comparisons of two models use a paired bootstrap: every sample takes the same images for both models.
"""

# R resamples

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from pathprune.evaluation.bootstrap import (
    CONFIDENCE,
    NUM_RESAMPLES,
    Interval,
    excludes_zero,
    percentile_interval,
    resample_counts,
)
from pathprune.evaluation.evaluator import Evaluation, check_same_images

Verdict = Literal["better", "worse", "tie"]


@dataclass(frozen=True)
class Retention:
    """Top-1 of a pruned model over top-1 of the dense model, with its 95 % paired bootstrap interval."""

    value: float
    ci: Interval


@dataclass(frozen=True)
class PairedComparison:
    """Comparison of two models `a` and `b`: top-1 of `a` minus top-1 of `b`, and the verdict on `a`.

    `ci` is the 95 % paired bootstrap interval of the difference. `p_value` is McNemar's exact two-sided test on the
    images that exactly one of the two models classifies correctly.
    """

    difference: float
    ci: Interval
    p_value: float
    verdict: Verdict


def top1_ci(evaluation: Evaluation) -> Interval:
    """Return the 95 % Wilson score interval of an evaluation's top-1 accuracy."""
    test = binomtest(int(evaluation.correct.sum()), evaluation.num_images)
    interval = test.proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def retention(
    pruned: Evaluation,
    dense: Evaluation,
    *,
    rng: np.random.Generator | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Retention:
    """Return top-1 of `pruned` over top-1 of `dense`.

    Bootstrap samples in which the dense model is never correct have no ratio and are dropped. Raises `ValueError` if
    the dense model is correct on no image, or if the two were evaluated on different images.
    """
    cells = _count_pairs(pruned, dense)
    if cells[0] + cells[2] == 0:
        raise ValueError(
            f"retention is undefined: '{dense.description}' classifies none of {dense.num_images} images correctly; "
            "check that the data set and the model number their classes alike"
        )
    draws_R4 = resample_counts(cells, num_resamples=num_resamples, rng=rng)
    dense_correct_R = draws_R4[:, 0] + draws_R4[:, 2]
    is_defined_R = dense_correct_R > 0
    ratios = (draws_R4[is_defined_R, 0] + draws_R4[is_defined_R, 1]) / dense_correct_R[is_defined_R]
    return Retention(float((cells[0] + cells[1]) / (cells[0] + cells[2])), percentile_interval(ratios))


def compare(
    a: Evaluation,
    b: Evaluation,
    *,
    rng: np.random.Generator | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> PairedComparison:
    """Compare the top-1 of `a` with the top-1 of `b` on the images that both were evaluated on.

    Raises `ValueError` if the two were evaluated on different images.
    """
    cells = _count_pairs(a, b)
    draws_R4 = resample_counts(cells, num_resamples=num_resamples, rng=rng)
    ci = percentile_interval((draws_R4[:, 1] - draws_R4[:, 2]) / a.num_images)
    only_a, only_b = int(cells[1]), int(cells[2])
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return PairedComparison((only_a - only_b) / a.num_images, ci, p_value, decide_verdict(ci, p_value))


def decide_verdict(ci: Interval, p_value: float) -> Verdict:
    """Return `better` or `worse` if the interval excludes 0 and the p-value is below 5 %, else `tie`.

    Both are required: where the two models differ on a handful of images, the bootstrap interval alone is too narrow.
    """
    if p_value >= 1 - CONFIDENCE or not excludes_zero(ci):
        return "tie"
    return "better" if ci[0] > 0 else "worse"


def _count_pairs(a: Evaluation, b: Evaluation) -> NDArray[np.int64]:
    """Count the images that both models, only `a`, only `b` and neither classify correctly: `[4]`."""
    check_same_images(a, b)
    counts = [
        (a.correct & b.correct).sum(),
        (a.correct & ~b.correct).sum(),
        (b.correct & ~a.correct).sum(),
        (~a.correct & ~b.correct).sum(),
    ]
    return np.array(counts, dtype=np.int64)
