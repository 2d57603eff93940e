"""An opened recipe: its context, and one object for every stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from pathprune.recipe import Recipe
from pathprune.runs import RunFolder
from pathprune.stages.comparison import Comparison
from pathprune.stages.context import Context, open_accelerator
from pathprune.stages.evaluation import Evaluator
from pathprune.stages.images import Splits, check_disjoint
from pathprune.stages.latency import Stopwatch
from pathprune.stages.mining import Mining
from pathprune.stages.model import open_model
from pathprune.stages.planning import Planner
from pathprune.stages.pruning import Pruning
from pathprune.stages.sampling import MiningSample
from pathprune.stages.scoring import Scoring
from pathprune.stages.training import Training


@dataclass(frozen=True)
class Experiment:
    """The stages of one recipe, in the order in which each uses the ones before it."""

    context: Context
    splits: Splits
    mining: Mining
    scoring: Scoring
    pruning: Pruning
    evaluator: Evaluator
    stopwatch: Stopwatch
    planner: Planner
    training: Training
    comparison: Comparison

    @classmethod
    def of(cls, context: Context, splits: Splits, sample: MiningSample) -> Experiment:
        """Build the stages of a context on the given images."""
        mining = Mining(context, splits, sample)
        scoring = Scoring(context, splits, mining)
        pruning = Pruning(context, splits, scoring)
        evaluator, stopwatch = Evaluator(context, splits), Stopwatch(context)
        planner = Planner(context, splits, mining, scoring, pruning, evaluator, stopwatch)
        training = Training(context, splits)
        comparison = Comparison(context, mining, scoring, pruning)
        return cls(context, splits, mining, scoring, pruning, evaluator, stopwatch, planner, training, comparison)

    @property
    def recipe(self) -> Recipe:
        return self.context.recipe

    @property
    def folder(self) -> RunFolder:
        return self.context.folder

    def with_module(self, module: nn.Module, *, folder: Path) -> Experiment:
        """Return the stages for another model of this architecture, on the same images, in a folder of its own."""
        model = self.context.model.with_module(module)
        context = replace(
            self.context,
            folder=RunFolder(folder, main=self.folder.main),
            model=model,
            model_key=model.compute_key(),
        )
        return Experiment.of(context, self.splits, self.mining.sample)

    def check_disjoint(self) -> None:
        """Refuse data in which an evaluation image is mined, calibrated on or, for `max_drop`, validated on."""
        evaluation, validation = self.splits.of("evaluate"), None
        if self.recipe.prune.max_drop is not None:
            validation = self.splits.of("validation")
        others = {"mine": self.mining.sample.image_set, "calibrate": self.splits.of("calibrate")}
        if validation is not None:
            check_disjoint(validation, others, purpose="validation")
            others["validate"] = validation
        check_disjoint(evaluation, others)


def open_experiment(recipe: Recipe, *, overwrite: bool = False, accelerator: Accelerator | None = None) -> Experiment:
    """Open a recipe: load its model, find its images, and claim its run folder.

    Under a launcher with several processes, the main process computes and writes what is not shared.
    Raises `RecipeError` for a folder with another recipe's results (unless `overwrite`), and `ValueError` for a model,
    data or settings that cannot be used.
    """
    accelerator = open_accelerator(recipe, accelerator)
    set_seed(recipe.seed)  # a model without weights is the same random one in every run and process
    model = open_model(recipe, device=accelerator.device)
    splits = Splits(recipe, model)
    if recipe.model.slice_head:
        model = model.with_classes(splits.classes)
    folder = RunFolder(recipe.folder, main=accelerator.is_main_process)
    context = Context(recipe, accelerator, folder, model, model.compute_key())
    with context.main_first():
        folder.claim(recipe, overwrite=overwrite)
    return Experiment.of(context, splits, MiningSample(context, splits))
