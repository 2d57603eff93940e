"""Metrics as `evaluate.Metric` classes, which need no hub and leave no files.

Each metric takes one number per image and returns fractions:
`Accuracy().compute(predictions=[0, 1], references=[0, 0])` -> `{"accuracy": 0.5}`.
`evaluate.load` is not used, because it downloads the metric's script from the hub.
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
    """A metric over columns of numbers that are kept in memory."""

    summary: str
    columns: dict[str, datasets.Value]

    def __init__(self) -> None:
        # `evaluate` creates a cache folder even for a metric in memory: give it a temporary one.
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
    """Top-1 accuracy: the fraction of `predictions` equal to `references` (the labels)."""

    summary = "Fraction of images whose predicted class is the label."
    columns = {"predictions": _INTEGER, "references": _INTEGER}  # noqa: RUF012

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(np.mean(predictions == references))}


class TopKAccuracy(_ColumnMetric):
    """Top-k accuracy: the fraction of images whose label has one of the `k` largest logits.

    `label_ranks` is 0 for the label with the largest logit. A `k` above the number of classes counts every image.
    """

    summary = "Fraction of images whose label is among the k most likely classes."
    columns = {"label_ranks": _INTEGER}  # noqa: RUF012

    def _compute(self, label_ranks: np.ndarray, k: int = 5) -> dict[str, float]:
        if k < 1:
            raise ValueError(f"top-k accuracy needs k of at least 1, got {k}")
        return {"top_k_accuracy": float(np.mean(label_ranks < k))}


class NegativeLogLikelihood(_ColumnMetric):
    """Mean of `nll`, the negative log-likelihood of each image's label, in nats."""

    summary = "Mean negative log-likelihood of the label, in nats."
    columns = {"nll": _NUMBER}  # noqa: RUF012

    def _compute(self, nll: np.ndarray) -> dict[str, float]:
        return {"nll": float(np.mean(nll))}


class PerClassAccuracy(_ColumnMetric):
    """Top-1 accuracy within each of `num_classes` classes; None for a class without images."""

    summary = "Fraction of each class's images whose predicted class is the label."
    columns = {"predictions": _INTEGER, "references": _INTEGER}  # noqa: RUF012

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, num_classes: int
    ) -> dict[str, Sequence[float | None]]:
        images = np.bincount(references, minlength=num_classes)
        correct = np.bincount(references[predictions == references], minlength=num_classes)
        return {"per_class_accuracy": [float(c / n) if n else None for c, n in zip(correct, images, strict=True)]}


class Agreement(_ColumnMetric):
    """Fraction of images for which a model and its reference (the dense model) predict the same class."""

    summary = "Fraction of images whose predicted class is the reference model's."
    columns = {"predictions": _INTEGER, "references": _INTEGER}  # noqa: RUF012

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"agreement": float(np.mean(predictions == references))}
