"""Which of several models differ: every pair on the same images, corrected for the number of pairs, over several seeds.

With k models there are k (k − 1) / 2 pairs, and at 5 % each, some differ by luck. Holm's step-down procedure (1979)
keeps the chance of any false "better" in the family at 5 %. Intervals stay those of a single pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pathprune.evaluation.evaluator import Evaluation, check_same_images
from pathprune.evaluation.intervals import (
    CONFIDENCE,
    NUM_RESAMPLES,
    PairedComparison,
    Retention,
    compare,
    percentiles,
    retention,
)

_SEED = 0


@dataclass(frozen=True)
class Pair:
    """Model `a` against model `b`; `result.verdict` is what is left after the correction, `p_value` is corrected."""

    a: str
    b: str
    result: PairedComparison

    @property
    def reversed(self) -> Pair:
        """`b` against `a`."""
        low, high = self.result.ci
        turned = replace(self.result, difference=-self.result.difference, ci=(-high, -low))
        return Pair(self.b, self.a, _judged(turned))


def compare_all(evaluations: Mapping[str, Sequence[Evaluation]]) -> list[Pair]:
    """Every pair of models, each with one evaluation per seed, as one family under Holm's correction.

    Over several seeds the difference is their mean, its interval resamples images (with all seeds' outcomes of an image
    together), and `a` counts as better only if it is in every seed: p is the largest of theirs. Raises `ValueError`
    unless all have the same images and number of seeds.
    """
    pairs = [Pair(a, b, _compare(evaluations[a], evaluations[b])) for a, b in combinations(evaluations, 2)]
    corrected = holm(pair.result.p_value for pair in pairs)
    return [
        replace(pair, result=_judged(replace(pair.result, p_value=p))) for pair, p in zip(pairs, corrected, strict=True)
    ]


def mean_retention(pruned: Sequence[Evaluation], dense: Evaluation) -> Retention:
    """Retention averaged over a model's seeds; the interval resamples images, with all seeds' outcomes of an image."""
    each = [retention(evaluation, dense) for evaluation in pruned]
    if len(each) == 1:
        return each[0]
    outcomes_N2 = np.stack([np.mean([evaluation.correct for evaluation in pruned], axis=0), dense.correct], axis=1)
    values, counts = np.unique(outcomes_N2, axis=0, return_counts=True)
    kept, of = (_resampled(counts) @ values).T
    return Retention(float(np.mean([one.value for one in each])), percentiles(kept[of > 0] / of[of > 0]))


def holm(p_values: Iterable[float]) -> list[float]:
    """Holm's adjusted p-values: the smallest times their number, the next times one less, and so on, never falling."""
    p = np.fromiter(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def _judged(result: PairedComparison) -> PairedComparison:
    if result.p_value < 1 - CONFIDENCE and (result.ci[0] > 0 or result.ci[1] < 0):
        return replace(result, verdict="better" if result.ci[0] > 0 else "worse")
    return replace(result, verdict="tie")


def _compare(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> PairedComparison:
    if len(a) != len(b):
        raise ValueError(f"one model has evaluations of {len(a)} seeds, the other of {len(b)}; compare the same seeds")
    each = [compare(one, other) for one, other in zip(a, b, strict=True)]
    if len(each) == 1:
        return each[0]
    for evaluation in a[1:]:
        check_same_images(evaluation, a[0])
    difference_N = np.mean([x.correct.astype(float) - y.correct for x, y in zip(a, b, strict=True)], axis=0)
    values, counts = np.unique(difference_N, return_counts=True)
    same_sign = len({np.sign(result.difference) for result in each}) == 1
    return PairedComparison(
        difference=float(difference_N.mean()),
        ci=percentiles(_resampled(counts) @ values / len(difference_N)),
        p_value=max(result.p_value for result in each) if same_sign else 1.0,
        verdict="tie",  # until the family is known
    )


def _resampled(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bootstrap how many images have each of some outcomes: `[NUM_RESAMPLES, outcomes]`."""
    return np.random.default_rng(_SEED).multinomial(counts.sum(), counts / counts.sum(), size=NUM_RESAMPLES)
