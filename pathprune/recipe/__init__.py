"""Recipes: one experiment as typed, frozen data, read from YAML."""

from pathprune.recipe.loading import load_recipe, parse_recipe
from pathprune.recipe.recipe import CompareConfig, Recipe, RecipeError
from pathprune.recipe.shipped import copy_recipe, find_recipe, read_summary, shipped_recipes

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
