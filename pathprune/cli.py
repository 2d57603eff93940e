"""The `pathprune` command."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from pathprune._version import __version__
from pathprune.progress import console as error_console

app = typer.Typer(
    name="pathprune",
    help="Prune the MLP neurons of Vision Transformers, guided by neuron paths (arXiv 2503.09046).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="The recipes that come with pathprune.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
console = Console()
if not console.is_terminal:
    console = Console(width=120)  # tables in logs and pipes need not fit a screen

RecipeArgument = Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped recipe.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides such as prune.ratio=0.7")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Take over a run folder that holds another recipe's results.")
]


def _version(show: bool) -> None:
    if show:
        console.print(f"pathprune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more, and show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=error_console, show_path=False, show_time=False)],
        force=True,
    )
    logging.getLogger("pathprune").setLevel(logging.DEBUG if verbose else logging.INFO)


@app.command()
def run(recipe: RecipeArgument, overrides: OverridesArgument = None, overwrite: OverwriteOption = False) -> None:
    """Mine, score, prune and evaluate; print the comparison. What is done already is not done again."""
    from pathprune.pipeline import run_recipe
    from pathprune.recipe import load_recipe
    from pathprune.report.tables import comparison_table, verdicts, work_table

    result = run_recipe(load_recipe(recipe, overrides or ()), overwrite=overwrite)
    if result.is_main_process:
        console.print(comparison_table(result.metrics))
        console.print(work_table(result.metrics))
        console.print("Top-1 in points, with the 95 % interval of the paired difference:")
        assert result.results is not None
        for line in verdicts(result.results):
            console.print(f"  {line}", soft_wrap=True)
        for tokens, accuracy in result.accuracies.items():
            console.print(f"Paths ({tokens} tokens): {accuracy}", soft_wrap=True)
        _say_results(result.folder)


@app.command()
def compare(recipe: RecipeArgument, overrides: OverridesArgument = None, overwrite: OverwriteOption = False) -> None:
    """Compare criteria, compensations and budgets, everything else equal; no checkpoints, no latency.

    Shares its folder, and all that is computed, with `pathprune run` of the same recipe.
    """
    from pathprune.pipeline import compare_recipe
    from pathprune.recipe import load_recipe
    from pathprune.report.tables import retention_tables, work_table
    from pathprune.report.verdict import headline

    result = compare_recipe(load_recipe(recipe, overrides or ()), overwrite=overwrite)
    if result.is_main_process:
        assert result.results is not None
        for table in retention_tables(result.results):
            console.print(table)
        console.print(work_table(result.metrics))
        for sentence in headline(result.results):
            console.print(escape(sentence.replace("`", "")), soft_wrap=True)
        _say_results(result.folder)


@app.command()
def mine(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    overwrite: OverwriteOption = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Time a few batches of noise, and print what mining would take.")
    ] = False,
) -> None:
    """Locate the neuron path of each image and aggregate the paths per class."""
    from pathprune.pipeline import mine_recipe
    from pathprune.recipe import load_recipe
    from pathprune.report.tables import mining_cost_table
    from pathprune.stages.estimate import estimate_recipe

    loaded = load_recipe(recipe, overrides or ())
    if estimate:
        found = estimate_recipe(loaded)
        console.print(mining_cost_table(found.table(loaded)))
        rates = ", ".join(f"{rate:,.3g} images/s ({tokens} tokens)" for tokens, rate in found.rates.items())
        console.print(f"{rates}; {found.setting}", soft_wrap=True)
        return
    result = mine_recipe(loaded, overwrite=overwrite)
    if result.is_main_process:
        for tokens, accuracy in result.accuracies.items():
            error_console.print(f"Paths ({tokens} tokens): {accuracy}", soft_wrap=True)
        for file in result.files:
            console.print(str(file), soft_wrap=True)


@app.command()
def prune(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed; save no model.")] = False,
) -> None:
    """Score, plan and prune; save the pruned checkpoints without evaluating them."""
    from pathprune.pipeline import plan_recipe, prune_recipe
    from pathprune.recipe import load_recipe
    from pathprune.report.tables import plan_table

    loaded = load_recipe(recipe, overrides or ())
    if dry_run:
        for label, plan in plan_recipe(loaded, overwrite=overwrite).items():
            console.print(plan_table(label, plan))
        return
    for folder in prune_recipe(loaded, overwrite=overwrite):
        _say(folder)


@app.command(name="eval")
def evaluate(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Evaluate the recipe's model on its evaluation split; point model.name at a pruned checkpoint to check it."""
    from pathprune.pipeline import evaluate_recipe
    from pathprune.recipe import load_recipe
    from pathprune.report.tables import comparison_table

    console.print(comparison_table([evaluate_recipe(load_recipe(recipe, overrides or ()))]))


@app.command()
def finetune(recipe: RecipeArgument, overrides: OverridesArgument = None, overwrite: OverwriteOption = False) -> None:
    """Train the recipe's model on its training split; goes on where an interrupted run stopped."""
    from pathprune.pipeline import finetune_recipe
    from pathprune.recipe import load_recipe
    from pathprune.report.tables import comparison_table

    result = finetune_recipe(load_recipe(recipe, overrides or ()), overwrite=overwrite)
    if result.is_main_process:
        console.print(comparison_table(result.metrics))
        console.print(f"Model: {result.folder / 'model'}", soft_wrap=True)


@app.command()
def inspect(recipe: RecipeArgument, overrides: OverridesArgument = None, overwrite: OverwriteOption = False) -> None:
    """Ask what the model's neuron paths do, who shares them, and what excites the neurons on them."""
    from pathprune.recipe import load_recipe
    from pathprune.report.inspection import inspection_tables, inspection_words
    from pathprune.stages.inspection import inspect_recipe

    found = inspect_recipe(load_recipe(recipe, overrides or ()), overwrite=overwrite)
    if found.is_main_process:
        for table in inspection_tables(found.findings):
            console.print(table)
        console.print(inspection_words(found.findings), soft_wrap=True)
        console.print(f"Results: {found.page}", soft_wrap=True)


@app.command()
def bench(
    targets: Annotated[
        list[str], typer.Argument(metavar="RECIPE_OR_FOLDER...", help="Recipes, run folders, checkpoints, KEY=VALUE.")
    ],
    batch_sizes: Annotated[str, typer.Option(help="Images per batch, such as 1,16,64.")] = "1,16,64",
    backends: Annotated[
        str | None, typer.Option(help="Of eager,compiled,onnxruntime; by default all that can run here.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed passes of each model.")] = 20,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default an accelerator if any.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    output: Annotated[Path | None, typer.Option(help="Folder for the results; by default the recipe's.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Time dense against pruned models, in turns: eagerly, compiled, and in ONNX Runtime; with memory."""
    from pydantic import ValidationError

    from pathprune.bench.measure import BenchConfig, bench_groups
    from pathprune.bench.measure import bench as measure
    from pathprune.files import write_text
    from pathprune.report.bench import bench_page, bench_table, bench_words
    from pathprune.report.render import render, save_figures

    try:
        config = BenchConfig.model_validate(
            {
                "batch_sizes": batch_sizes.split(","),
                "backends": backends.split(",") if backends else None,
                **{"repeats": repeats, "threads": threads, "device": device, "dtype": dtype},
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise ValueError(f"--{option}: {first['msg'].lower()}, got {first['input']!r}") from None
    overrides = [target for target in targets if "=" in target]
    groups, folder = bench_groups([target for target in targets if "=" not in target], overrides, overwrite=overwrite)
    rows = measure(groups, config, folder=output or folder)
    page = bench_page(rows)
    write_text((output or folder) / "bench.html", render(page))
    save_figures(page, (output or folder) / "figures")
    console.print(bench_table(rows))
    for words in bench_words(rows):
        console.print(f"  {words}", soft_wrap=True)
    console.print(f"Results: {(output or folder) / 'bench.html'}", soft_wrap=True)


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint's folder, or any other model that a recipe can name.")
    ],
    output: Annotated[Path | None, typer.Option(help="Folder to write to; by default exported/<checkpoint>.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX.")] = False,
    torch_export: Annotated[bool, typer.Option("--torch-export", help="Write a torch.export program.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Write float16 files too.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Write ONNX with int8 weights too.")] = False,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Let the graphs take any batch.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch of the graphs and the timings.")] = 1,
    data: Annotated[str, typer.Option(help="Source of real images to run the files on.")] = "demo",
    split: Annotated[str, typer.Option(help="Split of the source.")] = "test",
    num_images: Annotated[int, typer.Option(min=1, help="How many images to run the files on.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Timed batches of each file.")] = 30,
) -> None:
    """Export a model; run every file on real images, and compare its answers, size and latency."""
    from pathprune.export import choose_formats, export_checkpoint
    from pathprune.report.tables import export_table

    folder = output or Path("exported") / Path(checkpoint).name
    files = export_checkpoint(
        checkpoint,
        folder,
        formats=choose_formats(onnx=onnx, torch_export=torch_export, half=half, int8=int8),
        source=data,
        split=split,
        num_images=num_images,
        batch_size=batch_size,
        dynamic_batch=dynamic_batch,
        repeats=repeats,
    )
    console.print(export_table(files, num_images=num_images, batch_size=batch_size))
    console.print(f"Files and export.json: {folder}", soft_wrap=True)


@app.command()
def push(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint that pathprune saved.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    license: Annotated[
        str | None, typer.Option(help="Licence of the weights, such as apache-2.0, for the card.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the checkpoint; contact nobody.")] = False,
) -> None:
    """Upload a checkpoint and its model card to the hub, and check what arrived."""
    from pathprune.models.checkpoint import describe_pruned
    from pathprune.models.hub import push_to_hub

    if license:
        describe_pruned(checkpoint, license=license)
    pushed = push_to_hub(
        checkpoint,
        repository,
        private=True if private else None,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
    )
    for file, size in pushed.sizes.items():
        console.print(f"{file}: {size:,} bytes")
    console.print(
        f"Dry run: nothing was sent to {pushed.repository}" if dry_run else f"Pushed: {pushed.url}", soft_wrap=True
    )


@recipes_app.command("list")
def list_recipes() -> None:
    """Names of the shipped recipes, with what each is for."""
    from pathprune.recipe import shipped_recipes

    table = Table("recipe", "what it does", box=None)
    for name, file in shipped_recipes().items():
        table.add_row(name, file.read_text(encoding="utf-8").splitlines()[0].lstrip("# "))
    console.print(table)


@recipes_app.command("show")
def show_recipe(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Print a recipe as it is written; with overrides, as it is understood, every default filled in."""
    from pathprune.recipe import load_recipe, recipe_file

    loaded = load_recipe(recipe, overrides or ())
    text = loaded.to_yaml() if overrides else recipe_file(recipe).read_text(encoding="utf-8")
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        sys.stdout.write(text)


@recipes_app.command("validate")
def validate_recipe(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Check a recipe's keys and values without running it."""
    from pathprune.recipe import load_recipe

    load_recipe(recipe, overrides or ())
    console.print(f"{recipe}: valid")


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A shipped recipe.")],
    target: Annotated[Path, typer.Argument(help="File to write.")],
) -> None:
    """Copy a shipped recipe to a file of your own."""
    from pathprune.recipe import RecipeError, shipped_recipes

    if name not in shipped_recipes():
        raise RecipeError(f"no shipped recipe is called '{name}'; choose from {', '.join(shipped_recipes())}")
    if target.exists():
        raise RecipeError(f"{target} exists; choose another file")
    shutil.copyfile(shipped_recipes()[name], target)
    console.print(str(target), soft_wrap=True)


def _say_results(folder: Path) -> None:
    page = folder / "report.html"
    console.print(f"Report: {page}" if page.exists() else f"Results: {folder}", soft_wrap=True)


def _say(path: Path) -> None:
    """Print a result's path, once where several processes run."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        console.print(str(path), soft_wrap=True)


def main() -> None:
    """Run the command line; user errors are one line on standard error and exit code 2."""
    arguments = sys.argv[1:]
    verbose = "--verbose" in arguments
    if verbose:  # an option of the whole program, accepted after a command too
        arguments = ["--verbose", *(argument for argument in arguments if argument != "--verbose")]
    try:
        app(arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        if verbose:
            raise
        error_console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if verbose or "out of memory" not in str(error):
            raise
        error_console.print(
            "[bold red]error:[/] out of memory; lower mine.batch_size, score.batch_size or evaluate.batch_size"
        )
        raise SystemExit(2) from None
    except SystemExit as stop:
        if stop.code == 130:
            error_console.print(
                "interrupted: nothing is left half-written; the same command goes on from what is finished"
            )
        elif not stop.code:
            _part_from_other_processes()
        raise


def _part_from_other_processes() -> None:
    """Close the connections to them: a process that ends with some open may be aborted for it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
