"""Metrics as `evaluate.Metric` modules that live in the package: nothing is fetched from a hub or kept on disk.

Each takes one number per image, so a metric of a million images is a few columns; `evaluate.load` is not needed:
`Accuracy().compute(predictions=[0, 1], references=[0, 0])` -> `{"accuracy": 0.5}`. All results are fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory

import datasets
import evaluate
import numpy as np

_INTEGER = datasets.Value("int64")
_NUMBER = datasets.Value("float64")


class _ColumnMetric(evaluate.Metric):  # type: ignore[misc]
    """A metric over columns of numbers, held in memory."""

    summary: str
    columns: dict[str, datasets.Value]

    def __init__(self) -> None:
        # `evaluate` makes a cache folder even for a metric that stays in memory: give it one that goes away again
        with TemporaryDirectory(prefix="pathprune-metric-") as folder:
            super().__init__(keep_in_memory=True, cache_dir=folder)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description="",
            features=datasets.Features(self.columns),
            format="numpy",
        )


class Accuracy(_ColumnMetric):
    """Top-1: the fraction of `predictions` equal to `references` (labels)."""

    summary = "Fraction of images whose predicted class is the label."
    columns = {"predictions": _INTEGER, "references": _INTEGER}  # noqa: RUF012

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(np.mean(predictions == references))}


class TopKAccuracy(_ColumnMetric):
    """The fraction of images whose label ranks among the first `k` (`label_ranks`: 0 is the most likely class).

    With `k` beyond the number of classes every rank counts.
    """

    summary = "Fraction of images whose label is among the k most likely classes."
    columns = {"label_ranks": _INTEGER}  # noqa: RUF012

    def _compute(self, label_ranks: np.ndarray, k: int = 5) -> dict[str, float]:
        if k < 1:
            raise ValueError(f"top-k accuracy needs k of at least 1, got {k}")
        return {"top_k_accuracy": float(np.mean(label_ranks < k))}


class NegativeLogLikelihood(_ColumnMetric):
    """The mean of `nll`, each image's negative log probability of its label, in nats."""

    summary = "Mean negative log probability of the label, in nats."
    columns = {"nll": _NUMBER}  # noqa: RUF012

    def _compute(self, nll: np.ndarray) -> dict[str, float]:
        return {"nll": float(np.mean(nll))}


class PerClassAccuracy(_ColumnMetric):
    """Top-1 within each of `num_classes` classes; None for a class that no reference belongs to."""

    summary = "Fraction of each class's images whose predicted class is the label."
    columns = {"predictions": _INTEGER, "references": _INTEGER}  # noqa: RUF012

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, num_classes: int
    ) -> dict[str, Sequence[float | None]]:
        images = np.bincount(references, minlength=num_classes)
        right = np.bincount(references[predictions == references], minlength=num_classes)
        return {"per_class_accuracy": [float(r / n) if n else None for r, n in zip(right, images, strict=True)]}


class Agreement(_ColumnMetric):
    """The fraction of images to which a model and its reference (the dense model) give the same class."""

    summary = "Fraction of images whose predicted class is the reference model's."
    columns = {"predictions": _INTEGER, "references": _INTEGER}  # noqa: RUF012

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"agreement": float(np.mean(predictions == references))}
