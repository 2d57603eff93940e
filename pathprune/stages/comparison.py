"""The rows of a comparison: what `metrics.jsonl` says of every variant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pathprune.evaluation import (
    Evaluation,
    LatencyResult,
    Speedup,
    count_macs,
    count_params,
    retention,
    size_on_disk,
    speedup,
    top1_ci,
)
from pathprune.keys import key_of
from pathprune.models.pruned_config import WEIGHTS_FILE
from pathprune.pruning import PrunePlan, prune
from pathprune.stages.experiment import Experiment
from pathprune.stages.latency import timed, timing_key
from pathprune.stages.planning import Planned
from pathprune.stages.variants import Variant, label

ROW_FORMAT = 3  # raised when rows say something else, so that those of older versions are made again


def dense_row(experiment: Experiment, evaluation: Evaluation) -> dict[str, Any]:
    """The row of the recipe's own model, unpruned by this run."""
    return {
        "variant_id": "dense",
        "criterion": None,
        "compensation": None,
        "tokens": None,
        "budget_kind": experiment.recipe.prune.budget,
        "budget": 0.0,
        "budget_reached": 0.0,
        "budget_spread": None,
        "neurons_removed": 0.0,
        **_measured(experiment, experiment.model, evaluation, evaluation),
        "forward_passes": None,
        "kept_widths": [site.width for site in experiment.adapted.sites],
        "recovery": None,
        "checkpoint": None,
        "checkpoint_bytes": _weights_on_disk(Path(experiment.loaded.source)),
    }


def pruned_row(
    experiment: Experiment,
    variant: Variant,
    planned: Planned,
    model: nn.Module,
    evaluation: Evaluation,
    *,
    dense: Evaluation,
) -> dict[str, Any]:
    """The row of a pruned variant, which is nowhere saved yet."""
    return {
        "variant_id": variant.id,
        "criterion": variant.criterion.name,
        "criterion_options": variant.criterion.model_dump(mode="json", exclude_defaults=True),
        "compensation": variant.compensation.name,
        "tokens": variant.criterion.needs_mining,
        "budget_kind": variant.budget.kind,
        "budget": variant.budget.amount,
        "budget_reached": planned.reached,
        "budget_spread": planned.spread and list(planned.spread),
        "neurons_removed": planned.plan.neurons_removed,
        **_measured(experiment, model, evaluation, dense),
        "forward_passes": _work(experiment, variant, planned),
        "kept_widths": [len(kept) for kept in planned.plan.kept.values()],
        "checkpoint": None,
        "checkpoint_bytes": None,
        "recovery": None,
    }


def recovered_row(
    experiment: Experiment,
    variant: Variant,
    planned: Planned,
    history: list[dict[str, Any]],
    model: nn.Module,
    evaluation: Evaluation,
    *,
    dense: Evaluation,
) -> dict[str, Any]:
    """The row of a variant that was trained after pruning; `recovery` says for how long, and how its loss went."""
    config = experiment.recipe.recover
    assert config is not None, "it was recovered"
    row = pruned_row(experiment, variant, planned, model, evaluation, dense=dense)
    recovery = {"rounds": config.rounds, "epochs": config.epochs, "history": history}
    # what training took is in its history
    return {**row, "variant_id": f"{variant.id}--recovered", "recovery": recovery, "forward_passes": None}


def _work(experiment: Experiment, variant: Variant, planned: Planned) -> dict[str, float | None]:
    """What each step took, in forward passes of one image by the dense model; None where it was not counted.

    Steps that variants share are in each of them.
    """
    criterion, compensation = variant.criterion, variant.compensation
    uses_statistics = criterion.needs_statistics or compensation.needs_statistics
    macs = {
        "mining": experiment.mining.work(criterion.needs_mining) if criterion.needs_mining else 0.0,
        "statistics": experiment.work("statistics", key=experiment.statistics_key()) if uses_statistics else 0.0,
        "scoring": experiment.work(f"scores/{label(criterion)}", key=experiment.score_key(criterion)),
        "damage": planned.work,
        "fitting": experiment.work(f"pruned/{variant.id}", key=experiment.variant_key(variant, planned.plan)),
    }
    forward = count_macs(experiment.model, _size(experiment))
    return {step: None if work is None else work / forward for step, work in macs.items()}


def _size(experiment: Experiment) -> tuple[int, int]:
    _, height, width = experiment.data_config["input_size"]
    return height, width


def saved_at(experiment: Experiment, checkpoint: Path) -> dict[str, Any]:
    """What a row says of its variant's checkpoint."""
    place = str(checkpoint.relative_to(experiment.folder.path))
    return {"checkpoint": place, "checkpoint_bytes": size_on_disk(checkpoint / WEIGHTS_FILE)}


def _weights_on_disk(source: Path) -> int | None:
    """Bytes of the weights alone, where the model comes from this machine."""
    file = source / WEIGHTS_FILE if (source / WEIGHTS_FILE).is_file() else source
    return size_on_disk(file) if file.exists() else None


def _measured(experiment: Experiment, model: nn.Module, evaluation: Evaluation, dense: Evaluation) -> dict[str, Any]:
    summary = evaluation.summary()
    kept = retention(evaluation, dense)
    return {
        "seed": experiment.recipe.seed,
        "classes": list(experiment.recipe.classes) or None,
        "num_images": summary["num_images"],
        "top1": summary["top1"],
        "top1_ci": list(top1_ci(evaluation)),
        "retention": kept.value,
        "retention_ci": list(kept.ci),
        "top5": summary["top5"],
        "nll": summary["nll"],
        "per_class": summary["per_class"],
        "agreement": summary.get("agreement"),
        "num_params": count_params(model),
        "macs": count_macs(model, _size(experiment)),
        "latency_ms": None,
        "latency_batch_size": None,
    }


def add_latency(experiment: Experiment, rows: list[dict[str, Any]], plans: Mapping[str, PrunePlan]) -> None:
    """Time (into `rows`, in place) all models in turns; equal widths are timed once, and a second run not at all."""
    chosen = {_widths_name(row): plans.get(row["variant_id"]) for row in reversed(rows)}

    def measure() -> dict[str, Any]:
        models = {
            name: prune(experiment.adapted, plan=plan).model if plan else experiment.model
            for name, plan in chosen.items()
        }
        results = timed(experiment, models)
        dense = results[_widths_name(rows[0])]
        return {name: _timing(result, speedup(dense, result)) for name, result in results.items()}

    timings = experiment.folder.json_artifact(
        "latency.json",
        key=key_of(widths=sorted(chosen), latency=timing_key(experiment)),
        make=measure,
    )
    for row in rows:
        row |= timings[_widths_name(row)]


def _timing(result: LatencyResult, ratio: Speedup) -> dict[str, Any]:
    return {
        "latency_ms": result.median_ms,
        "latency_spread_ms": [result.low_ms, result.high_ms],
        "latency_batch_size": result.batch_size,
        "images_per_second": result.throughput,
        "speedup": ratio.median,
        "speedup_spread": [ratio.low, ratio.high],
    }


def _widths_name(row: Mapping[str, Any]) -> str:
    return "-".join(map(str, row["kept_widths"]))
