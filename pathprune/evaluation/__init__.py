"""Evaluation of models: accuracy with intervals, agreement, cost, latency and memory."""

from typing import TYPE_CHECKING

from pathprune.lazy import import_on_use

if TYPE_CHECKING:
    from pathprune.evaluation.bootstrap import Interval
    from pathprune.evaluation.cost import count_macs, count_params, mlp_mac_share, neuron_cost, size_on_disk
    from pathprune.evaluation.evaluator import Evaluation, check_same_images, evaluate_model
    from pathprune.evaluation.intervals import PairedComparison, Retention, compare, retention, top1_ci
    from pathprune.evaluation.latency import LatencyResult, Speedup, measure_latency, speedup
    from pathprune.evaluation.significance import Pair, compare_all, mean_retention
    from pathprune.evaluation.work import MacCounter
else:
    __getattr__ = import_on_use(__name__)

__all__ = [
    "Evaluation",
    "Interval",
    "LatencyResult",
    "MacCounter",
    "Pair",
    "PairedComparison",
    "Retention",
    "Speedup",
    "check_same_images",
    "compare",
    "compare_all",
    "count_macs",
    "count_params",
    "evaluate_model",
    "mean_retention",
    "measure_latency",
    "mlp_mac_share",
    "neuron_cost",
    "retention",
    "size_on_disk",
    "speedup",
    "top1_ci",
]
