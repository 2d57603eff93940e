"""The commands as functions: each runs the stages of a recipe, in order, and returns their results."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pathprune.artifacts import ArtifactKind
from pathprune.evaluation import Evaluation
from pathprune.evaluation.latency import device_name
from pathprune.mining import PathAccuracy, Tokens
from pathprune.models.checkpoint import describe_pruned, load_pruned
from pathprune.pruning import PrunePlan
from pathprune.recipe import Recipe, RecipeError
from pathprune.report.entries import Results
from pathprune.report.rows import VariantRow, to_json_lines
from pathprune.stages.checkpoints import CHECKPOINT_CODEC, Checkpoints
from pathprune.stages.experiment import Experiment, open_experiment
from pathprune.stages.mining import tokens_to_mine
from pathprune.stages.planning import Planned
from pathprune.stages.provenance import published_metrics, published_recipe
from pathprune.stages.recovery import is_recovered, recover
from pathprune.stages.report import write_report
from pathprune.stages.variants import Variant, label, variants, with_seed

TRAINED: ArtifactKind[nn.Module] = ArtifactKind("model", inputs=("training",), codec=CHECKPOINT_CODEC)

_PACKAGES = (
    *("pathprune", "torch", "torchvision", "timm", "torch-pruning", "datasets", "accelerate", "evaluate", "numpy"),
)


@dataclass(frozen=True)
class RunResult:
    """Results of a run: its folder, one row per model, and the outcomes behind the rows by variant."""

    folder: Path
    rows: list[VariantRow]
    evaluations: Mapping[str, Evaluation]
    is_main_process: bool = True
    accuracies: Mapping[Tokens, PathAccuracy] = field(default_factory=dict)  # of mining, by the tokens clamped
    results: Results | None = None  # content of the page of a run or a comparison

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows as `metrics.jsonl` holds them."""
        return [row.to_json() for row in self.rows]


@dataclass(frozen=True)
class MineResult:
    """Results of mining: the files of the class statistics, and the accuracy of the paths where it was checked."""

    files: list[Path]
    accuracies: Mapping[Tokens, PathAccuracy]
    is_main_process: bool = True


@dataclass(frozen=True)
class _Seed:
    """One seed's part of a comparison."""

    rows: list[VariantRow]
    evaluations: dict[str, Evaluation]
    plans: dict[str, PrunePlan]


def run_recipe(recipe: Recipe, *, overwrite: bool = False, accelerator: Accelerator | None = None) -> RunResult:
    """Mine, score, prune and evaluate; results that the run folder holds already are not computed again.

    Raises `RecipeError` where the folder holds another recipe's results (unless `overwrite`), and `DataError`,
    `UnsupportedModelError` or another `ValueError` for input that cannot be used. `accelerator` defaults to one made
    for the recipe.
    """
    experiment = open_experiment(recipe, overwrite=overwrite, accelerator=accelerator)
    if recipe.recover:
        experiment.training.check(recipe.recover)
    seed = _run_seed(experiment, is_full=True)
    folder = experiment.folder
    folder.discard_unused("evaluations/", "plans/", "pruned/", "recovered/", "rows/", "budgets/", "damage/")
    if folder.main:
        if recipe.evaluate.latency:  # in one process: others would disturb the timing
            seed = replace(seed, rows=experiment.stopwatch.add_timings(seed.rows, seed.plans))
            folder.write_text("metrics.jsonl", to_json_lines(seed.rows))
        _describe_checkpoints(experiment, seed.rows)
    return _report(experiment, [seed])


def compare_recipe(recipe: Recipe, *, overwrite: bool = False, accelerator: Accelerator | None = None) -> RunResult:
    """Compare every criterion, compensation and budget of a recipe, for each of its `compare.seeds`.

    A run without checkpoints, recovery and latency, in the same folder. Further seeds, each with mining and calibration
    images of its own, are under `seeds/`. Raises as `run_recipe` does.
    """
    experiment = open_experiment(recipe, overwrite=overwrite, accelerator=accelerator)
    seeds = [_run_seed(experiment, is_full=False)]
    for number in recipe.compare.seeds:
        if number != recipe.seed:
            other = open_experiment(
                with_seed(recipe, number), overwrite=overwrite, accelerator=experiment.context.accelerator
            )
            if other.context.model_key != experiment.context.model_key:
                raise RecipeError("the model has no weights and is another one for every seed; give model.checkpoint")
            seeds.append(_run_seed(other, is_full=False, dense=seeds[0].evaluations["dense"]))
    return _report(experiment, seeds)


def mine_recipe(recipe: Recipe, *, overwrite: bool = False, accelerator: Accelerator | None = None) -> MineResult:
    """Mine the paths that the recipe's criteria need, or all tokens' paths where no criterion needs any."""
    experiment = open_experiment(recipe, overwrite=overwrite, accelerator=accelerator)
    mining, files = experiment.mining, []
    for tokens in tokens_to_mine(recipe):
        mining.stats(tokens)
        files.append(mining.stats_file(tokens))
    return MineResult(files, mining.accuracies, experiment.folder.main)


def plan_recipe(
    recipe: Recipe, *, overwrite: bool = False, accelerator: Accelerator | None = None
) -> dict[str, PrunePlan]:
    """Return the plan of every criterion and budget by a readable title, and of every compensation where it matters.

    Models are pruned only where a budget's search measures them.
    """
    experiment = open_experiment(recipe, overwrite=overwrite, accelerator=accelerator)
    depends = recipe.prune.max_drop is not None or recipe.prune.normalize == "damage"
    plans: dict[str, PrunePlan] = {}
    for variant in variants(recipe):
        name = label(variant.criterion) + (f" with {label(variant.compensation)}" if depends else "")
        title = f"{name} at {variant.budget}"
        if title not in plans:
            plans[title] = experiment.planner.plan(variant).plan
    return plans


def prune_recipe(recipe: Recipe, *, overwrite: bool = False, accelerator: Accelerator | None = None) -> list[Path]:
    """Prune and save a checkpoint of every variant, whatever `prune.save` says; return their folders."""
    experiment = open_experiment(recipe, overwrite=overwrite, accelerator=accelerator)
    return [experiment.pruning.save(variant, experiment.planner.plan(variant).plan) for variant in variants(recipe)]


def evaluate_recipe(recipe: Recipe, *, accelerator: Accelerator | None = None) -> VariantRow:
    """Evaluate the recipe's model as it is; nothing is mined, pruned or compared.

    Without an `output`, results go to a folder of their own beside the run's, so that a recipe can check its own pruned
    model.
    """
    folder = recipe.output or f"{recipe.folder}-eval"
    experiment = open_experiment(recipe.model_copy(update={"output": folder}), accelerator=accelerator)
    return experiment.comparison.dense_row(experiment.evaluator.dense())


def finetune_recipe(recipe: Recipe, *, overwrite: bool = False, accelerator: Accelerator | None = None) -> RunResult:
    """Train the recipe's model on its training split and evaluate it; the model is saved under `model/`.

    Dense models are saved in the format of pruned ones, so that either can be named in another recipe.
    """
    experiment = open_experiment(recipe, overwrite=overwrite, accelerator=accelerator)
    training, folder, module = experiment.training, experiment.folder, experiment.context.model.module
    training.check(recipe.train)
    key = training.key(recipe.train, start=experiment.context.model_key)
    artifact = TRAINED.of(training=key)
    if not folder.is_current(artifact):
        history = training.train(module, recipe.train, name="finetune", key=key)
        folder.write_json("history.json", history)
        checkpoints = Checkpoints(experiment.context, experiment.splits)
        checkpoints.save(artifact, lambda: module, provenance={"recipe": published_recipe(recipe)})
        training.discard_state(key)
    module.load_state_dict(load_pruned(folder.path / artifact.name).state_dict())
    evaluation = experiment.evaluator.evaluate("trained", lambda: module, variant=key)
    row = experiment.comparison.dense_row(evaluation)
    folder.write_text("metrics.jsonl", to_json_lines([row]))
    if folder.main:
        describe_pruned(folder.path / artifact.name, metrics=published_metrics(recipe, row, dense=None))
    return RunResult(folder.path, [row], {"dense": evaluation}, folder.main)


def _run_seed(experiment: Experiment, *, is_full: bool, dense: Evaluation | None = None) -> _Seed:
    """Prune and evaluate every variant; `is_full`, also save and recover as the recipe says. `dense` may be known."""
    recipe, folder = experiment.recipe, experiment.folder
    experiment.check_disjoint()
    folder.write_json("environment.json", _environment(experiment))
    dense = dense or experiment.evaluator.dense()
    seed = _Seed([experiment.comparison.dense_row(dense)], {"dense": dense}, {})

    def add(row: VariantRow, evaluation: Evaluation) -> None:
        seed.rows.append(row)
        seed.evaluations[row.variant_id] = evaluation
        folder.write_text("metrics.jsonl", to_json_lines(seed.rows))

    for variant in variants(recipe):
        planned = experiment.planner.plan(variant)
        seed.plans[variant.id] = planned.plan
        experiment.pruning.save_plan(variant, planned.plan)
        is_saved = is_full and bool({"all", variant.criterion.name} & set(recipe.prune.save))
        add(*_evaluate_variant(experiment, variant, planned, dense, is_saved=is_saved))
        if is_full and is_recovered(recipe, variant):
            add(*_evaluate_recovered(experiment, variant, planned, dense))
    return seed


def _evaluate_variant(
    experiment: Experiment, variant: Variant, planned: Planned, dense: Evaluation, *, is_saved: bool
) -> tuple[VariantRow, Evaluation]:
    """Return row and evaluation of a variant; its model is built only for results that are not stored."""
    pruning, comparison, evaluator = experiment.pruning, experiment.comparison, experiment.evaluator
    artifact = pruning.artifact(variant, planned.plan)
    experiment.folder.is_current(artifact)  # a checkpoint that `pathprune prune` saved counts as used

    @cache
    def model() -> nn.Module:
        return pruning.fit(variant, planned.plan)

    evaluation = evaluator.evaluate(variant.id, model, variant=artifact.key, reference=dense)
    stored = evaluator.artifact(variant.id, variant=artifact.key)
    row = comparison.pruned_row(variant, planned, model, stored, evaluation, dense)
    if is_saved:
        row = comparison.with_checkpoint(row, pruning.save(variant, planned.plan, model))
    return row, evaluation


def _evaluate_recovered(
    experiment: Experiment, variant: Variant, planned: Planned, dense: Evaluation
) -> tuple[VariantRow, Evaluation]:
    """Return row and evaluation of a variant after training, which runs where its result is not stored."""
    comparison, evaluator = experiment.comparison, experiment.evaluator
    recovered = recover(experiment, variant, planned.plan)
    model = cache(lambda: recovered.load().to(experiment.context.accelerator.device))
    name = f"{variant.id}--recovered"
    evaluation = evaluator.evaluate(name, model, variant=recovered.key, reference=dense)
    stored = evaluator.artifact(name, variant=recovered.key)
    planned = replace(planned, plan=recovered.plan)
    row = comparison.pruned_row(variant, planned, model, stored, evaluation, dense, recovered.record)
    return comparison.with_checkpoint(row, recovered.folder), evaluation


def _report(experiment: Experiment, seeds: Sequence[_Seed]) -> RunResult:
    """Write page, figures and tables of a run with all its seeds, and return its result."""
    first, folder = seeds[0], experiment.folder
    rows = [row for seed in seeds for row in seed.rows]
    evaluations = {name: [seed.evaluations[name] for seed in seeds] for name in first.evaluations}
    results = write_report(experiment, rows, evaluations, first.plans, environment=_environment(experiment))
    return RunResult(folder.path, first.rows, first.evaluations, folder.main, experiment.mining.accuracies, results)


def _describe_checkpoints(experiment: Experiment, rows: Sequence[VariantRow]) -> None:
    """Add the measurements to the checkpoints and their model cards."""
    for row in rows:
        if row.checkpoint and not row.is_dense:
            metrics = published_metrics(experiment.recipe, row, dense=rows[0])
            describe_pruned(experiment.folder.path / row.checkpoint, metrics=metrics)


def _environment(experiment: Experiment) -> dict[str, Any]:
    accelerator = experiment.context.accelerator
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "device": device_name(accelerator.device),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
    }
