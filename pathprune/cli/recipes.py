"""Commands about recipes as files: list, show, validate, copy."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.syntax import Syntax
from rich.table import Table

from pathprune.cli.arguments import Overrides, Recipe
from pathprune.cli.console import console


def list_recipes() -> None:
    """List the shipped recipes."""
    from pathprune.recipe import shipped_recipes

    table = Table("recipe", "what it does", box=None)
    for name, file in shipped_recipes().items():
        table.add_row(name, file.read_text(encoding="utf-8").splitlines()[0].lstrip("# "))
    console.print(table)


def show_recipe(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe file; with overrides, print the resulting recipe with all defaults."""
    from pathprune.recipe import load_recipe, recipe_file

    loaded = load_recipe(recipe, overrides or ())
    text = loaded.to_yaml() if overrides else recipe_file(recipe).read_text(encoding="utf-8")
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        sys.stdout.write(text)


def validate_recipe(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check the keys and values of a recipe without running it."""
    from pathprune.recipe import load_recipe

    load_recipe(recipe, overrides or ())
    console.print(f"{recipe}: valid")


def copy_recipe(
    name: Annotated[str, typer.Argument(help="Name of a shipped recipe.")],
    target: Annotated[Path, typer.Argument(help="File to write; it must not exist yet.")],
) -> None:
    """Copy a shipped recipe to a new file, to edit it."""
    from pathprune.recipe import RecipeError, shipped_recipes

    if name not in shipped_recipes():
        raise RecipeError(f"no shipped recipe is called '{name}'; choose from {', '.join(shipped_recipes())}")
    if target.exists():
        raise RecipeError(f"{target} exists; choose another file")
    shutil.copyfile(shipped_recipes()[name], target)
    console.print(str(target), soft_wrap=True)
