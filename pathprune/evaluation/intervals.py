"""95 % intervals of accuracies, and of comparisons between models evaluated on the same images.

One accuracy is a proportion: Wilson's score interval, which (unlike the bootstrap) keeps a width at 0 % and 100 %.
Comparisons resample images, the same for both models. Two models' right and wrong answers fall in four cells, so a
bootstrap sample of the images is exactly one multinomial draw of four counts: no index arrays, 10,000 samples at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from pathprune.evaluation.evaluator import Evaluation, check_same_images

Interval = tuple[float, float]

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
_SEED = 0  # of the generator where none is given: the same evaluations give the same interval


@dataclass(frozen=True)
class Retention:
    """The share of the dense model's top-1 that a pruned model keeps, with its 95 % paired bootstrap interval."""

    value: float
    ci: Interval


@dataclass(frozen=True)
class PairedComparison:
    """Top-1 of `a` minus top-1 of `b`, its 95 % paired bootstrap interval, and what follows for `a`.

    `p_value` is McNemar's exact two-sided test on the images that exactly one of the two gets right.
    """

    difference: float
    ci: Interval
    p_value: float
    verdict: Literal["better", "worse", "tie"]


def top1_ci(evaluation: Evaluation) -> Interval:
    """The 95 % Wilson interval of an evaluation's top-1 accuracy."""
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
    """Pruned top-1 / dense top-1. Resamples in which the dense model is never right have no ratio and are left out.

    Raises `ValueError` where the dense model is right on no image, or the images differ.
    """
    cells = _cells(pruned, dense)
    if cells[0] + cells[2] == 0:
        raise ValueError(
            f"retention is undefined: '{dense.description}' classifies none of {dense.num_images} images right; "
            "check that the data set numbers its classes as the model does"
        )
    draws = _resample(cells, rng, num_resamples)
    dense_right = draws[:, 0] + draws[:, 2]
    defined = dense_right > 0
    ratios = (draws[defined, 0] + draws[defined, 1]) / dense_right[defined]
    return Retention(float((cells[0] + cells[1]) / (cells[0] + cells[2])), percentiles(ratios))


def compare(
    a: Evaluation,
    b: Evaluation,
    *,
    rng: np.random.Generator | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> PairedComparison:
    """Is `a` better than `b` on the images that both were evaluated on?

    A verdict other than "tie" needs an interval without 0 and McNemar's p below 5 %: with a handful of images on which
    the two differ, the bootstrap alone is too sure of itself.
    """
    cells = _cells(a, b)
    draws = _resample(cells, rng, num_resamples)
    low, high = percentiles((draws[:, 1] - draws[:, 2]) / a.num_images)
    only_a, only_b = int(cells[1]), int(cells[2])
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    verdict: Literal["better", "worse", "tie"] = "tie"
    if p_value < 1 - CONFIDENCE and low > 0:
        verdict = "better"
    if p_value < 1 - CONFIDENCE and high < 0:
        verdict = "worse"
    return PairedComparison((only_a - only_b) / a.num_images, (low, high), p_value, verdict)


def _cells(a: Evaluation, b: Evaluation) -> NDArray[np.int64]:
    """Images that both, only `a`, only `b`, neither classify right: `[4]`."""
    check_same_images(a, b)
    right_a, right_b = a.correct, b.correct
    both, neither = right_a & right_b, ~(right_a | right_b)
    return np.array([both.sum(), (right_a & ~right_b).sum(), (right_b & ~right_a).sum(), neither.sum()], dtype=np.int64)


def _resample(cells: NDArray[np.int64], rng: np.random.Generator | None, num_resamples: int) -> NDArray[np.int64]:
    """Bootstrap the four cells: `[num_resamples, 4]` counts."""
    rng = rng or np.random.default_rng(_SEED)
    return rng.multinomial(cells.sum(), cells / cells.sum(), size=num_resamples)


def percentiles(values: NDArray[np.float64]) -> Interval:
    """The interval that leaves out equal tails of resampled values."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
