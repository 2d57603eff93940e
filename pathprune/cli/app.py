"""Assembly of the `pathprune` command, and its exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.markup import escape

from pathprune._version import __version__
from pathprune.cli import deployment, experiments, recipes
from pathprune.cli.console import console, error_console


def _print_version(value: bool) -> None:
    if value:
        console.print(f"pathprune {__version__}")
        raise typer.Exit


def _configure_logging(
    verbose: Annotated[bool, typer.Option("--verbose", help="Log debug messages; show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=error_console, show_path=False, show_time=False)],
        force=True,
    )
    logging.getLogger("pathprune").setLevel(logging.DEBUG if verbose else logging.INFO)


def _add_command(app: typer.Typer, function: Callable[..., None], name: str, *, panel: str | None = None) -> None:
    """Add a command whose help is the docstring, with one line per paragraph: Typer would keep the line breaks."""
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in (function.__doc__ or "").split("\n\n"))
    app.command(name, help=text, rich_help_panel=panel)(function)


def _build_app() -> typer.Typer:
    app = typer.Typer(
        name="pathprune",
        help="Prune the MLP neurons of Vision Transformers, guided by neuron paths (arXiv 2503.09046).\n\n"
        "Start with `pathprune run quickstart`.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        callback=_configure_logging,
    )
    _add_command(app, experiments.run, "run", panel="Experiments")
    _add_command(app, experiments.compare, "compare", panel="Experiments")
    _add_command(app, experiments.prune, "prune", panel="Experiments")
    _add_command(app, experiments.finetune, "finetune", panel="Experiments")
    _add_command(app, experiments.evaluate, "eval", panel="Experiments")
    _add_command(app, experiments.mine, "mine", panel="Neuron paths")
    _add_command(app, experiments.inspect, "inspect", panel="Neuron paths")
    _add_command(app, deployment.bench, "bench", panel="Deployment")
    _add_command(app, deployment.export, "export", panel="Deployment")
    _add_command(app, deployment.push, "push", panel="Deployment")

    recipes_app = typer.Typer(no_args_is_help=True)
    _add_command(recipes_app, recipes.list_recipes, "list")
    _add_command(recipes_app, recipes.show_recipe, "show")
    _add_command(recipes_app, recipes.validate_recipe, "validate")
    _add_command(recipes_app, recipes.copy_recipe, "copy")
    _add_command(recipes_app, recipes.print_schema, "schema")
    app.add_typer(
        recipes_app,
        name="recipes",
        help="List, show, validate and copy the recipes that ship with pathprune.",
        rich_help_panel="Recipes",
    )
    return app


_app = _build_app()


def main() -> None:
    """Run the command line. A user error prints one line on standard error and exits with code 2."""
    arguments = sys.argv[1:]
    verbose = "--verbose" in arguments
    if verbose:  # an option of the whole program; accept it after a command too
        arguments = ["--verbose", *(argument for argument in arguments if argument != "--verbose")]
    try:
        _app(arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        if verbose:
            raise
        _exit_with_error(str(error))
    except RuntimeError as error:
        if verbose or "out of memory" not in str(error):
            raise
        _exit_with_error("out of memory; lower mine.batch_size, score.batch_size or evaluate.batch_size")
    except SystemExit as stop:
        if stop.code == 130:
            error_console.print("interrupted: all files are complete; run the same command again to continue")
        elif not stop.code:
            _destroy_process_group()
        raise


def _exit_with_error(message: str) -> None:
    error_console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise SystemExit(2) from None


def _destroy_process_group() -> None:
    """Close the connections between processes: torch may abort a process that exits with open ones."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
