"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathprune.recipe import Recipe

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file, or name of a shipped recipe (see: pathprune recipes list).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Recipe keys to change, such as prune.ratio=0.7 or seed=1."),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Use the run folder even if it holds another recipe's results; keep shared ones."),
]


def read_recipe(name: str, overrides: list[str] | None) -> Recipe:
    """Load a recipe to run; refuse mistakes and missing paths before anything slow is imported."""
    from pathprune.recipe import load_recipe

    recipe = load_recipe(name, overrides or ())
    recipe.check_paths()
    return recipe
