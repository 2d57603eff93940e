"""Comparisons of several models: every pair, corrected for the number of pairs, over one or more seeds.

`k` models make `k (k - 1) / 2` pairs. If each pair is tested at 5 %, some pairs differ by chance. Holm's step-down
procedure (1979) keeps the probability of any false verdict in the family of pairs below 5 %. Intervals are not
corrected: each is the interval of a single pair.
"""

# N images

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from pathprune.evaluation.bootstrap import percentile_interval, resample_counts
from pathprune.evaluation.evaluator import Evaluation, check_same_images
from pathprune.evaluation.intervals import PairedComparison, Retention, compare, decide_verdict, retention


@dataclass(frozen=True)
class Pair:
    """Comparison of model `a` with model `b`; `result` has the corrected p-value and the verdict that follows."""

    a: str
    b: str
    result: PairedComparison

    def swap(self) -> Pair:
        """Return the comparison of `b` with `a`."""
        low, high = self.result.ci
        ci = (-high, -low)
        verdict = decide_verdict(ci, self.result.p_value)
        return Pair(self.b, self.a, PairedComparison(-self.result.difference, ci, self.result.p_value, verdict))


def compare_all(evaluations: Mapping[str, Sequence[Evaluation]]) -> list[Pair]:
    """Compare every pair of models, with one evaluation per seed and model, as one family under Holm's correction.

    Over several seeds the difference is the mean over seeds. Its interval resamples images, each with the outcomes of
    all seeds. The p-value is the largest of the seeds' p-values, or 1 if the sign of the difference varies, so that a
    verdict needs the same direction in every seed.

    Raises `ValueError` if the models have different images or numbers of seeds.
    """
    pairs = [Pair(a, b, _compare_seeds(evaluations[a], evaluations[b])) for a, b in combinations(evaluations, 2)]
    corrected = holm(pair.result.p_value for pair in pairs)
    return [_correct(pair, p_value) for pair, p_value in zip(pairs, corrected, strict=True)]


def mean_retention(pruned: Sequence[Evaluation], dense: Evaluation) -> Retention:
    """Return the mean retention over seeds; its interval resamples images, each with the outcomes of all seeds."""
    retentions = [retention(evaluation, dense) for evaluation in pruned]
    if len(retentions) == 1:
        return retentions[0]
    outcomes_N2 = np.stack([np.mean([evaluation.correct for evaluation in pruned], axis=0), dense.correct], axis=1)
    values, counts = np.unique(outcomes_N2, axis=0, return_counts=True)
    pruned_correct, dense_correct = (resample_counts(counts) @ values).T
    is_defined = dense_correct > 0
    ratios = pruned_correct[is_defined] / dense_correct[is_defined]
    return Retention(float(np.mean([each.value for each in retentions])), percentile_interval(ratios))


def holm(p_values: Iterable[float]) -> list[float]:
    """Return Holm's adjusted p-values.

    The smallest of `m` p-values is multiplied by `m`, the next by `m - 1`, and so on. An adjusted value is at least as
    large as the one before it, and at most 1.
    """
    p = np.fromiter(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def _correct(pair: Pair, p_value: float) -> Pair:
    verdict = decide_verdict(pair.result.ci, p_value)
    return replace(pair, result=replace(pair.result, p_value=p_value, verdict=verdict))


def _compare_seeds(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> PairedComparison:
    """Compare two models over seeds; the p-value is not yet corrected."""
    if len(a) != len(b):
        raise ValueError(f"one model has evaluations of {len(a)} seeds, the other of {len(b)}; compare the same seeds")
    comparisons = [compare(one, other) for one, other in zip(a, b, strict=True)]
    if len(comparisons) == 1:
        return comparisons[0]
    for evaluation in a[1:]:
        check_same_images(evaluation, a[0])
    difference_N = np.mean([x.correct.astype(float) - y.correct for x, y in zip(a, b, strict=True)], axis=0)
    values, counts = np.unique(difference_N, return_counts=True)
    ci = percentile_interval(resample_counts(counts) @ values / len(difference_N))
    have_same_sign = len({np.sign(each.difference) for each in comparisons}) == 1
    p_value = max(each.p_value for each in comparisons) if have_same_sign else 1.0
    return PairedComparison(float(difference_N.mean()), ci, p_value, decide_verdict(ci, p_value))
