"""Commands about recipe files: list, show, validate, copy, schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.syntax import Syntax
from rich.table import Table

from pathprune.cli.arguments import Overrides, RecipeName
from pathprune.cli.console import console


def list_recipes() -> None:
    """List the shipped recipes."""
    from pathprune.recipe import read_summary, shipped_recipes

    table = Table("recipe", "what it does", box=None)
    for name, file in shipped_recipes().items():
        table.add_row(name, read_summary(file))
    console.print(table)


def show_recipe(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Print a recipe file; with overrides, print the resulting recipe with all defaults."""
    from pathprune.recipe import find_recipe, load_recipe

    loaded = load_recipe(recipe, overrides or ())
    text = loaded.to_yaml() if overrides else find_recipe(recipe).read_text(encoding="utf-8")
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        sys.stdout.write(text)


def validate_recipe(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check the keys and values of a recipe without running it.

    Refuses placeholders that were left in place, too.
    """
    from pathprune.recipe import load_recipe

    load_recipe(recipe, overrides or ()).check_placeholders()
    console.print(f"{recipe}: valid")


def copy_recipe(
    name: Annotated[str, typer.Argument(help="Name of a shipped recipe.")],
    target: Annotated[Path, typer.Argument(help="File to write; it must not exist yet.")],
) -> None:
    """Copy a shipped recipe to a new file, to edit it.

    The first line of the copy points editors to the JSON schema of this installation: they complete and check the keys.
    """
    from pathprune.recipe import copy_recipe as copy

    copy(name, target)
    console.print(str(target), soft_wrap=True)


def print_schema() -> None:
    """Print the JSON schema of recipes, for editors.

    Contains the criteria of other installed packages too, unlike the schema that ships with pathprune.
    """
    from pathprune.recipe.schema import recipe_schema

    sys.stdout.write(json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n")
