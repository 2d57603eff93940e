"""What the commands do: the stages of an experiment, in order, and the rows of its comparison."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathprune.evaluation import Evaluation
from pathprune.keys import key_of
from pathprune.mining import PathAccuracy, Tokens
from pathprune.models.checkpoint import describe_pruned, load_pruned
from pathprune.pruning import PrunePlan
from pathprune.recipe import Recipe, RecipeError
from pathprune.report.entries import Results
from pathprune.runs import read_json
from pathprune.stages.comparison import ROW_FORMAT, add_latency, dense_row, pruned_row, recovered_row, saved_at
from pathprune.stages.experiment import Experiment
from pathprune.stages.mining import tokens_to_mine
from pathprune.stages.planning import Planned, Planner
from pathprune.stages.provenance import made_by, measured, origin, published_recipe
from pathprune.stages.recovery import is_recovered, recover
from pathprune.stages.report import report
from pathprune.stages.training import check_training, forget_state, train_model, training_key
from pathprune.stages.variants import Variant, label, of_seed, variants


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: its folder, the rows of `metrics.jsonl`, and the outcomes behind them by variant."""

    folder: Path
    metrics: list[dict[str, Any]]
    evaluations: Mapping[str, Evaluation]
    is_main_process: bool = True
    accuracies: Mapping[Tokens, PathAccuracy] = field(default_factory=dict)  # of mining, by the tokens clamped
    results: Results | None = None  # what the page of a run or a comparison is made of


@dataclass(frozen=True)
class MineResult:
    """What mining leaves: the files of the class statistics and the accuracy of the paths, where it was checked."""

    files: list[Path]
    accuracies: Mapping[Tokens, PathAccuracy]
    is_main_process: bool = True


def run_recipe(recipe: Recipe, *, overwrite: bool = False) -> RunResult:
    """Mine, score, prune and evaluate; what the run folder holds already is not computed again.

    Raises `RecipeError` where the folder holds another recipe's results (unless `overwrite`), and `DataError`,
    `UnsupportedModelError` or another `ValueError` for input that cannot be used.
    """
    experiment = Experiment(recipe, overwrite=overwrite)
    if recipe.recover:
        check_training(experiment, recipe.recover)
    found = _run(experiment, is_full=True)
    folder = experiment.folder
    folder.forget_unused("evaluations/", "plans/", "pruned/", "recovered/", "rows/", "budgets/", "damage/")
    if folder.main:
        if recipe.evaluate.latency:  # by one process alone: others would disturb it
            add_latency(experiment, found.rows, found.plans)
            folder.write_metrics(found.rows)
        _describe_checkpoints(experiment, found.rows)
    return _reported(experiment, [found])


def compare_recipe(recipe: Recipe, *, overwrite: bool = False) -> RunResult:
    """Compare every criterion, compensation and budget of a recipe, for each of its `compare.seeds`.

    A run without checkpoints, recovery and latency: the same folder, of which nothing is computed again. Further seeds,
    each with mining and calibration images of its own, are under `seeds/`. Raises as `run_recipe` does.
    """
    experiment = Experiment(recipe, overwrite=overwrite)
    found = [_run(experiment, is_full=False)]
    for seed in recipe.compare.seeds:
        if seed != recipe.seed:
            other = Experiment(of_seed(recipe, seed), overwrite=overwrite)
            if other.model_key != experiment.model_key:
                raise RecipeError("the model has no weights and is another one for every seed; give model.checkpoint")
            found.append(_run(other, is_full=False, dense=found[0].evaluations["dense"]))
    return _reported(experiment, found)


@dataclass(frozen=True)
class _Found:
    """What one seed of a comparison comes to."""

    rows: list[dict[str, Any]]
    evaluations: dict[str, Evaluation]
    plans: dict[str, PrunePlan]


def _run(experiment: Experiment, *, is_full: bool, dense: Evaluation | None = None) -> _Found:
    """Prune and evaluate every variant; in full, save and recover those that the recipe says. `dense` may be known."""
    recipe, folder = experiment.recipe, experiment.folder
    experiment.splits.check_disjoint("mine", "calibrate")
    if recipe.prune.max_drop is not None:
        experiment.splits.check_disjoint("mine", "calibrate", "validation")
    folder.write_json("environment.json", _environment(experiment))
    dense = dense or experiment.evaluation("dense", lambda: experiment.model)
    found = _Found([dense_row(experiment, dense)], {"dense": dense}, {})
    planner = Planner(experiment)
    for variant in variants(recipe):
        planned = planner.plan(variant)
        plan = found.plans[variant.id] = planned.plan
        folder.json_artifact(f"plans/{variant.id}.json", key=key_of(plan=plan.to_dict()), make=plan.to_dict)
        # `pathprune prune` may have saved it
        folder.keep(f"pruned/{variant.id}", key=experiment.checkpoint_key(variant, plan))
        is_saved = is_full and _is_saved(recipe, variant)
        row, found.evaluations[variant.id] = _compared(experiment, variant, planned, dense, is_saved=is_saved)
        found.rows.append(row)
        folder.write_metrics(found.rows)
        if is_full and is_recovered(recipe, variant):
            row, found.evaluations[row["variant_id"]] = _compared_recovered(experiment, variant, planned, dense)
            found.rows.append(row)
            folder.write_metrics(found.rows)
    return found


def _reported(experiment: Experiment, found: Sequence[_Found]) -> RunResult:
    """The result of a run, of all its seeds, with its page, figures and tables written."""
    folder, rows = experiment.folder, [row for each in found for row in each.rows]
    evaluations = {name: [each.evaluations[name] for each in found] for name in found[0].evaluations}
    results = report(experiment, rows, evaluations, found[0].plans, environment=_environment(experiment))
    accuracies = experiment.mining.accuracies
    return RunResult(folder.path, found[0].rows, found[0].evaluations, folder.main, accuracies, results)


def mine_recipe(recipe: Recipe, *, overwrite: bool = False) -> MineResult:
    """Mine what the recipe's criteria need (all tokens, where none needs any)."""
    experiment = Experiment(recipe, overwrite=overwrite)
    files = []
    for tokens in tokens_to_mine(recipe):
        experiment.mined(tokens)
        files.append(experiment.folder.path / "mined" / tokens / "stats.safetensors")
    return MineResult(files, experiment.mining.accuracies, experiment.folder.main)


def plan_recipe(recipe: Recipe, *, overwrite: bool = False) -> dict[str, PrunePlan]:
    """The plan of every criterion and budget, by a label for people, and of every compensation where that matters.

    Nothing is pruned, but for what a search needs.
    """
    experiment = Experiment(recipe, overwrite=overwrite)
    planner = Planner(experiment)
    depends = recipe.prune.max_drop is not None or recipe.prune.normalize == "damage"
    plans = {}
    for variant in variants(recipe):
        name = label(variant.criterion) + (f" with {label(variant.compensation)}" if depends else "")
        title = f"{name} at {variant.budget}"
        if title not in plans:
            plans[title] = planner.plan(variant).plan
    return plans


def prune_recipe(recipe: Recipe, *, overwrite: bool = False) -> list[Path]:
    """Prune, and save a checkpoint of every variant, whatever `prune.save` says; returns their folders."""
    experiment = Experiment(recipe, overwrite=overwrite)
    planner, folders = Planner(experiment), []
    for variant in variants(recipe):
        plan = planner.plan(variant).plan
        folders.append(_save(experiment, variant, plan, lambda: experiment.pruned(variant, plan).model))  # noqa: B023
    return folders


def evaluate_recipe(recipe: Recipe) -> dict[str, Any]:
    """Evaluate the recipe's model as it is; nothing is mined, pruned or compared.

    Without an `output`, in a folder of its own beside the run's, so that a pruned model can be checked by its recipe.
    """
    folder = recipe.output or f"{recipe.folder}-eval"
    experiment = Experiment(recipe.model_copy(update={"output": folder}))
    return dense_row(experiment, experiment.evaluation("dense", lambda: experiment.model))


def finetune_recipe(recipe: Recipe, *, overwrite: bool = False) -> RunResult:
    """Train the recipe's model on its training split and evaluate it; the model is saved under `model/`.

    Dense models are saved in the format of pruned ones, so that either can be named in another recipe.
    """
    experiment = Experiment(recipe, overwrite=overwrite)
    check_training(experiment, recipe.train)
    key = training_key(experiment, recipe.train, start=experiment.model_key)
    folder = experiment.folder
    if not folder.is_current("model", key=key):
        history = train_model(experiment, experiment.model, recipe.train, name="finetune", key=key)
        folder.write_json("history.json", history)
        about = {"recipe": published_recipe(recipe)}
        experiment.save_checkpoint("model", lambda: experiment.model, key=key, provenance=about)
        forget_state(experiment, key=key)
    experiment.model.load_state_dict(load_pruned(folder.path / "model").state_dict())
    evaluation = experiment.evaluation("trained", lambda: experiment.model, key=key)
    rows = [dense_row(experiment, evaluation)]
    folder.write_metrics(rows)
    if folder.main:
        describe_pruned(folder.path / "model", metrics=measured(recipe, rows[0], dense=None))
    return RunResult(folder.path, rows, {"dense": evaluation}, folder.main)


def _compared(
    experiment: Experiment, variant: Variant, planned: Planned, dense: Evaluation, *, is_saved: bool
) -> tuple[dict[str, Any], Evaluation]:
    """Row and evaluation of a variant; its model is made only if either, or its checkpoint, is not there yet."""
    plan, key = planned.plan, experiment.variant_key(variant, planned.plan)

    @cache
    def model() -> nn.Module:
        if variant.compensation.needs_statistics:
            experiment.statistics()  # work of its own
        with experiment.counted(f"pruned/{variant.id}", key=key):
            return experiment.pruned(variant, plan).model

    return _row(
        experiment,
        variant.id,
        model,
        key=key,
        dense=dense,
        save=partial(_save, experiment, variant, plan, model) if is_saved else None,
        describe=partial(pruned_row, experiment, variant, planned),
    )


def _compared_recovered(
    experiment: Experiment, variant: Variant, planned: Planned, dense: Evaluation
) -> tuple[dict[str, Any], Evaluation]:
    """Row and evaluation of a variant after training, which is done where it is not done yet."""
    recovered = recover(experiment, variant, planned.plan)
    return _row(
        experiment,
        f"{variant.id}--recovered",
        cache(lambda: recovered.model().to(experiment.accelerator.device)),
        key=recovered.key,
        dense=dense,
        save=lambda: recovered.folder,
        describe=partial(recovered_row, experiment, variant, replace(planned, plan=recovered.plan), recovered.history),
    )


def _row(
    experiment: Experiment,
    variant_id: str,
    model: Callable[[], nn.Module],
    *,
    key: str,
    dense: Evaluation,
    save: Callable[[], Path] | None,
    describe: Callable[..., dict[str, Any]],
) -> tuple[dict[str, Any], Evaluation]:
    """The row that `describe` makes of a model, and the evaluation behind it; what is there already is read."""
    folder = experiment.folder
    name = f"rows/{variant_id}.json"
    row_key = key_of(evaluation=experiment.evaluation_key(key), format=ROW_FORMAT)
    known = folder.current(name, key=row_key, load=read_json)
    evaluation = experiment.evaluation(variant_id, model, reference=dense, key=key)
    row: dict[str, Any]
    if known:
        row = known[0]
    else:
        row = describe(model(), evaluation, dense=dense)
        row = folder.json_artifact(name, key=row_key, make=lambda: row)
    return row | (saved_at(experiment, save()) if save else {}), evaluation


def _is_saved(recipe: Recipe, variant: Variant) -> bool:
    return "all" in recipe.prune.save or variant.criterion.name in recipe.prune.save


def _save(experiment: Experiment, variant: Variant, plan: PrunePlan, model: Callable[[], nn.Module]) -> Path:
    return experiment.save_checkpoint(
        f"pruned/{variant.id}",
        model,
        key=experiment.checkpoint_key(variant, plan),
        kept=plan.kept,
        provenance=made_by(experiment.recipe, variant, plan),
        **origin(experiment.recipe, experiment.loaded),
    )


def _describe_checkpoints(experiment: Experiment, rows: list[dict[str, Any]]) -> None:
    """Add what was measured to the checkpoints and their model cards."""
    for row in rows:
        if row["checkpoint"]:
            metrics = measured(experiment.recipe, row, dense=rows[0])
            describe_pruned(experiment.folder.path / row["checkpoint"], metrics=metrics)


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
