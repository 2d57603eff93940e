"""Tests of metrics against hand counts, and of their independence from hub and disk."""

import math

import evaluate
import pytest

from pathprune.evaluation.metrics import (
    Accuracy,
    Agreement,
    NegativeLogLikelihood,
    PerClassAccuracy,
    TopKAccuracy,
)

METRICS = (Accuracy, Agreement, NegativeLogLikelihood, PerClassAccuracy, TopKAccuracy)


def test_accuracy_and_agreement_count_equal_predictions():
    assert Accuracy().compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2]) == {"accuracy": 0.75}
    assert Agreement().compute(predictions=[0, 1, 2, 2], references=[1, 1, 1, 1]) == {"agreement": 0.25}


def test_accuracy_of_batches_is_the_accuracy_of_all_images():
    metric = Accuracy()
    metric.add_batch(predictions=[0, 1, 2], references=[0, 1, 1])
    metric.add_batch(predictions=[2], references=[2])
    assert metric.compute() == {"accuracy": 0.75}


@pytest.mark.parametrize(("k", "expected"), [(1, 0.25), (2, 0.5), (3, 0.75), (5, 1.0), (1000, 1.0)])
def test_top_k_counts_ranks_below_k(k, expected):
    assert TopKAccuracy().compute(label_ranks=[0, 1, 2, 4], k=k) == {"top_k_accuracy": expected}


def test_top_k_needs_a_positive_k():
    with pytest.raises(ValueError, match="k of at least 1, got 0"):
        TopKAccuracy().compute(label_ranks=[0], k=0)


def test_nll_is_the_mean_in_nats():
    assert NegativeLogLikelihood().compute(nll=[math.log(2), math.log(8)])["nll"] == pytest.approx(math.log(4))


def test_per_class_accuracy_is_none_for_a_class_without_images():
    result = PerClassAccuracy().compute(predictions=[0, 0, 1, 3], references=[0, 0, 0, 3], num_classes=5)
    assert result == {"per_class_accuracy": [pytest.approx(2 / 3), None, None, 1.0, None]}


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_are_evaluate_metrics_and_leave_no_files(metric, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert isinstance(metric(), evaluate.Metric)
    assert list(tmp_path.iterdir()) == []
