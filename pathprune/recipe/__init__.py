"""Recipes: one experiment as typed, frozen data, read from YAML."""

from typing import TYPE_CHECKING

from pathprune.lazy import import_on_use

if TYPE_CHECKING:
    from pathprune.recipe.error import RecipeError
    from pathprune.recipe.loading import load_recipe, parse_recipe
    from pathprune.recipe.recipe import CompareConfig, Recipe
    from pathprune.recipe.shipped import copy_recipe, find_recipe, read_summary, shipped_recipes
else:
    __getattr__ = import_on_use(__name__)

__all__ = [
    "CompareConfig",
    "Recipe",
    "RecipeError",
    "copy_recipe",
    "find_recipe",
    "load_recipe",
    "parse_recipe",
    "read_summary",
    "shipped_recipes",
]
