"""Commands that run a recipe: the whole experiment, or one of its stages."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from pathprune.cli.arguments import Overrides, Overwrite, RecipeName, read_recipe
from pathprune.cli.console import console, error_console, print_path, print_run_folder


def run(recipe: RecipeName, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Mine, score, prune and evaluate: run a whole recipe and compare its pruned models.

    Results go to the recipe's run folder: `metrics.jsonl`, `report.html` and the pruned checkpoints. A repeated run
    computes only the missing results: an interrupted run continues, and an extended recipe adds to its results.
    """
    loaded = read_recipe(recipe, overrides)
    from pathprune.pipeline import run_recipe
    from pathprune.report.tables import build_comparison_table, build_work_table, compose_path_verdicts

    result = run_recipe(loaded, overwrite=overwrite)
    if result.is_main_process:
        console.print(build_comparison_table(result.rows))
        console.print(build_work_table(result.rows))
        console.print("Top-1 in points, with the 95 % interval of the paired difference:")
        assert result.results is not None
        for line in compose_path_verdicts(result.results):
            console.print(f"  {line}", soft_wrap=True)
        for tokens, accuracy in result.accuracies.items():
            console.print(f"Paths ({tokens} tokens): {accuracy}", soft_wrap=True)
        print_run_folder(result.folder)


def compare(recipe: RecipeName, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Compare criteria, compensations and budgets under equal conditions.

    Saves no checkpoints and measures no latency. Shares the run folder and all finished work with `pathprune run` of
    the same recipe.
    """
    loaded = read_recipe(recipe, overrides)
    from pathprune.pipeline import compare_recipe
    from pathprune.report.tables import build_retention_tables, build_work_table
    from pathprune.report.verdict import compose_headline

    result = compare_recipe(loaded, overwrite=overwrite)
    if result.is_main_process:
        assert result.results is not None
        for table in build_retention_tables(result.results):
            console.print(table)
        console.print(build_work_table(result.rows))
        for sentence in compose_headline(result.results):
            console.print(escape(sentence.replace("`", "")), soft_wrap=True)
        print_run_folder(result.folder)


def mine(
    recipe: RecipeName,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Time a few batches of random images and print how long mining takes.")
    ] = False,
) -> None:
    """Locate the neuron path of each image and sum the paths per class.

    Prints the files with the mined paths and the class statistics.
    """
    loaded = read_recipe(recipe, overrides)
    from pathprune.pipeline import mine_recipe
    from pathprune.report.tables import build_mining_cost_table
    from pathprune.stages.estimate import estimate_recipe

    if estimate:
        cost = estimate_recipe(loaded)
        console.print(build_mining_cost_table(cost.table(loaded)))
        rates = ", ".join(f"{rate:,.3g} images/s ({tokens} tokens)" for tokens, rate in cost.rates.items())
        console.print(f"{rates}; {cost.setting}", soft_wrap=True)
        return
    result = mine_recipe(loaded, overwrite=overwrite)
    if result.is_main_process:
        for tokens, accuracy in result.accuracies.items():
            error_console.print(f"Paths ({tokens} tokens): {accuracy}", soft_wrap=True)
        for file in result.files:
            console.print(str(file), soft_wrap=True)


def prune(
    recipe: RecipeName,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print how many neurons go from each block; save no checkpoint.")
    ] = False,
) -> None:
    """Save the pruned checkpoints of a recipe without evaluating them.

    Scores the neurons and prunes by every criterion, compensation and ratio of the recipe. Prints the checkpoints.
    """
    loaded = read_recipe(recipe, overrides)
    from accelerate import PartialState

    from pathprune.pipeline import plan_recipe, prune_recipe
    from pathprune.report.tables import build_plan_table

    if dry_run:
        for label, plan in plan_recipe(loaded, overwrite=overwrite).items():
            console.print(build_plan_table(label, plan))
        return
    for folder in prune_recipe(loaded, overwrite=overwrite):
        if PartialState().is_main_process:
            console.print(str(folder), soft_wrap=True)


def evaluate(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Measure the accuracy, size and latency of a recipe's model.

    Evaluates on the recipe's evaluation split. To check a pruned checkpoint, set `model.name` to its folder.
    """
    loaded = read_recipe(recipe, overrides)
    from pathprune.pipeline import evaluate_recipe
    from pathprune.report.tables import build_comparison_table

    console.print(build_comparison_table([evaluate_recipe(loaded)]))


def finetune(recipe: RecipeName, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Train a recipe's model on its training split.

    The recipe's `train` section has the settings. An interrupted training continues from its last saved state.
    """
    loaded = read_recipe(recipe, overrides)
    from pathprune.pipeline import finetune_recipe
    from pathprune.report.tables import build_comparison_table

    result = finetune_recipe(loaded, overwrite=overwrite)
    if result.is_main_process:
        console.print(build_comparison_table(result.rows))
        print_path("Model", result.folder / "model")


def inspect(recipe: RecipeName, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Show what the neuron paths do in a model.

    Compares the strength of located paths with that of other paths, measures the effect of removing and enhancing them,
    and shows the classes that share them and the images that excite their neurons.
    """
    loaded = read_recipe(recipe, overrides)
    from pathprune.report.inspection import build_inspection_tables, compose_inspection_verdict
    from pathprune.stages.inspection import inspect_recipe

    result = inspect_recipe(loaded, overwrite=overwrite)
    if result.is_main_process:
        for table in build_inspection_tables(result.findings):
            console.print(table)
        console.print(compose_inspection_verdict(result.findings), soft_wrap=True)
        print_path("Results", result.page)
