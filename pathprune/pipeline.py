"""What the commands do: the stages of an experiment, in order, and the rows of its comparison."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathprune.evaluation import (
    Evaluation,
    count_macs,
    count_params,
    measure_latency,
    retention,
    speedup,
    top1_ci,
)
from pathprune.experiment import Experiment, Variant, label
from pathprune.models.checkpoint import load_pruned
from pathprune.pruning import PrunePlan, parse_compensation, prune
from pathprune.recipe import Recipe
from pathprune.recovery import train
from pathprune.report.figures import retention_figure
from pathprune.runs import key_of
from pathprune.scoring import parse_criterion
from pathprune.scoring.criteria import Tokens


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: its folder, the rows of `metrics.jsonl`, and the outcomes behind them by variant."""

    folder: Path
    metrics: list[dict[str, Any]]
    evaluations: Mapping[str, Evaluation]
    is_main_process: bool = True


def variants(recipe: Recipe) -> list[Variant]:
    """Every pruned variant of a recipe: budgets, then criteria, then compensations."""
    criteria = [parse_criterion(spec) for spec in recipe.score.criteria]
    compensations = [parse_compensation(spec) for spec in recipe.compensation]
    return [
        Variant(criterion, compensation, budget)
        for budget in recipe.prune.ratio
        for criterion in criteria
        for compensation in compensations
    ]


def run_recipe(recipe: Recipe, *, overwrite: bool = False) -> RunResult:
    """Mine, score, prune and evaluate; what the run folder holds already is not computed again.

    Raises `RecipeError` where the folder holds another recipe's results (unless `overwrite`), and `DataError`,
    `UnsupportedModelError` or another `ValueError` for input that cannot be used.
    """
    experiment = Experiment(recipe, overwrite=overwrite)
    folder = experiment.folder
    experiment.check_disjoint("mine", "calibrate")
    folder.write_json("environment.json", _environment(experiment))
    dense = experiment.evaluation("dense", None)
    evaluations = {"dense": dense}
    rows = [_dense_row(experiment, dense)]
    folder.write_metrics(rows)
    plans: dict[str, PrunePlan] = {}
    for variant in variants(recipe):
        plan = experiment.plan(variant.criterion, variant.budget)
        folder.write_json(f"plans/{variant.id}.json", plan.to_dict())
        evaluation, model = _evaluate_variant(experiment, variant, plan, dense)
        evaluations[variant.id], plans[variant.id] = evaluation, plan
        rows.append(_pruned_row(experiment, variant, plan, evaluation, dense, model))
        folder.write_metrics(rows)
    if recipe.evaluate.latency:
        _add_latency(experiment, rows, plans)
        folder.write_metrics(rows)
    if folder.main:
        retention_figure(rows, folder.path / "retention")
    return RunResult(folder.path, rows, evaluations, folder.main)


def mine_recipe(recipe: Recipe, *, overwrite: bool = False) -> list[Path]:
    """Mine what the recipe's criteria need (all tokens, where none needs any); returns the statistics' files."""
    experiment = Experiment(recipe, overwrite=overwrite)
    needed: dict[Tokens, None] = {}
    for spec in recipe.score.criteria:
        if (tokens := parse_criterion(spec).needs_mining) is not None:
            needed[tokens] = None
    files = []
    all_tokens: dict[Tokens, None] = {"all": None}
    for wanted in needed or all_tokens:
        experiment.mined(wanted)
        files.append(experiment.folder.path / "mined" / wanted / "stats.safetensors")
    return files


def plan_recipe(recipe: Recipe, *, overwrite: bool = False) -> dict[str, PrunePlan]:
    """The plan of every criterion and budget, by a label for people; nothing is pruned."""
    experiment = Experiment(recipe, overwrite=overwrite)
    return {
        f"{label(criterion)} at {budget:.0%}": experiment.plan(criterion, budget)
        for budget in recipe.prune.ratio
        for criterion in map(parse_criterion, recipe.score.criteria)
    }


def prune_recipe(recipe: Recipe, *, overwrite: bool = False) -> list[Path]:
    """Prune and save a checkpoint of every variant that the recipe saves; returns their folders."""
    experiment = Experiment(recipe, overwrite=overwrite)
    chosen = [variant for variant in variants(recipe) if _is_saved(recipe, variant)]
    if not chosen:
        raise ValueError(f"prune.save names none of the recipe's criteria: {', '.join(recipe.prune.save) or 'empty'}")
    folders = []
    for variant in chosen:
        plan = experiment.plan(variant.criterion, variant.budget)
        folders.append(_save(experiment, variant, plan, experiment.pruned(variant, plan).model))
    return folders


def evaluate_recipe(recipe: Recipe) -> dict[str, Any]:
    """Evaluate the recipe's model as it is; nothing is mined or pruned, and nothing is written but the evaluation."""
    experiment = Experiment(recipe)
    return _dense_row(experiment, experiment.evaluation("dense", None))


def finetune_recipe(recipe: Recipe, *, overwrite: bool = False) -> RunResult:
    """Train the recipe's model on its training split and evaluate it; the model is saved under `model/`.

    A model that timm built is saved as a timm `local-dir:` folder, a pruned one as a pruned checkpoint.
    """
    experiment = Experiment(recipe, overwrite=overwrite)
    experiment.check_disjoint("train")
    images = experiment.images("train")
    key = key_of(
        train=recipe.train.model_dump(mode="json"), model=experiment.model_key, images=experiment.images_key("train")
    )
    folder = experiment.folder
    if not folder.is_current("model", key=key):
        history = train(
            experiment.model,
            images,
            config=recipe.train,
            data_config=experiment.data_config,
            num_classes=experiment.adapted.num_classes,
            state_file=folder.path / f"training-{key}.pt",
        )
        folder.write_json("history.json", history)
        experiment.save_checkpoint("model", experiment.model, key=key, provenance={"recipe": recipe.name})
        if folder.main:
            (folder.path / f"training-{key}.pt").unlink(missing_ok=True)
    experiment.model.load_state_dict(load_pruned(folder.path / "model").state_dict())
    evaluation = experiment.evaluation("trained", None, key=key)
    rows = [_dense_row(experiment, evaluation)]
    folder.write_metrics(rows)
    return RunResult(folder.path, rows, {"dense": evaluation}, folder.main)


def _evaluate_variant(
    experiment: Experiment, variant: Variant, plan: PrunePlan, dense: Evaluation
) -> tuple[Evaluation, nn.Module]:
    key = experiment.variant_key(variant, plan)
    model = experiment.pruned(variant, plan).model
    evaluation = experiment.evaluation(variant.id, model, reference=dense, key=key)
    if _is_saved(experiment.recipe, variant):
        _save(experiment, variant, plan, model)
    return evaluation, model


def _is_saved(recipe: Recipe, variant: Variant) -> bool:
    return "all" in recipe.prune.save or variant.criterion.name in recipe.prune.save


def _save(experiment: Experiment, variant: Variant, plan: PrunePlan, model: nn.Module) -> Path:
    about = {"recipe": experiment.recipe.name, "variant_id": variant.id, "neurons_removed": plan.neurons_removed}

    return experiment.save_checkpoint(
        f"pruned/{variant.id}",
        model,
        key=key_of(model=experiment.model_key, pruned=experiment.variant_key(variant, plan)),
        kept=plan.kept,
        provenance=about,
    )


def _dense_row(experiment: Experiment, evaluation: Evaluation) -> dict[str, Any]:
    """The row of the recipe's own model, unpruned by this run."""
    return {
        "variant_id": "dense",
        "criterion": None,
        "compensation": None,
        "tokens": None,
        "budget_kind": "neurons",
        "budget": 0.0,
        "neurons_removed": 0.0,
        **_measured(experiment, experiment.model, evaluation, evaluation),
        "kept_widths": [site.width for site in experiment.adapted.sites],
    }


def _pruned_row(
    experiment: Experiment,
    variant: Variant,
    plan: PrunePlan,
    evaluation: Evaluation,
    dense: Evaluation,
    model: nn.Module,
) -> dict[str, Any]:
    return {
        "variant_id": variant.id,
        "criterion": variant.criterion.name,
        "criterion_options": variant.criterion.model_dump(mode="json", exclude_defaults=True),
        "compensation": variant.compensation.name,
        "tokens": variant.criterion.needs_mining,
        "budget_kind": "neurons",
        "budget": variant.budget,
        "neurons_removed": plan.neurons_removed,
        **_measured(experiment, model, evaluation, dense),
        "kept_widths": [len(kept) for kept in plan.kept.values()],
    }


def _measured(experiment: Experiment, model: nn.Module, evaluation: Evaluation, dense: Evaluation) -> dict[str, Any]:
    summary = evaluation.summary()
    kept = retention(evaluation, dense)
    return {
        "seed": experiment.recipe.seed,
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
        "macs": count_macs(model, tuple(experiment.data_config["input_size"][1:])),
        "latency_ms": None,
        "latency_batch_size": None,
    }


def _add_latency(experiment: Experiment, rows: list[dict[str, Any]], plans: Mapping[str, PrunePlan]) -> None:
    """Time (into `rows`, in place) dense and pruned models in turns; equal widths are timed once."""
    config = experiment.recipe.evaluate
    models: dict[str, nn.Module] = {}
    for row in rows:
        name = _widths_name(row)
        if name not in models:
            plan = plans.get(row["variant_id"])
            models[name] = prune(experiment.adapted, plan=plan).model if plan else experiment.model
    results = measure_latency(models, experiment.latency_images(), repeats=config.latency_repeats)
    dense = results[_widths_name(rows[0])]
    for row in rows:
        result = results[_widths_name(row)]
        ratio = speedup(dense, result)
        row["latency_ms"] = result.median_ms
        row["latency_spread_ms"] = [result.low_ms, result.high_ms]
        row["latency_batch_size"] = result.batch_size
        row["images_per_second"] = result.throughput
        row["speedup"] = ratio.median
        row["speedup_spread"] = [ratio.low, ratio.high]


def _widths_name(row: Mapping[str, Any]) -> str:
    return "-".join(map(str, row["kept_widths"]))


def _environment(experiment: Experiment) -> dict[str, Any]:
    packages = (
        "pathprune",
        "torch",
        "torchvision",
        "timm",
        "torch-pruning",
        "datasets",
        "accelerate",
        "evaluate",
        "numpy",
    )
    device = experiment.accelerator.device
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": experiment.accelerator.num_processes,
    }
