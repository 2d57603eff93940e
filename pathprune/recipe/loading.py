"""Reading of recipes, with overrides and with errors by dotted path."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pathprune.recipe.error import RecipeError
from pathprune.recipe.recipe import Recipe
from pathprune.recipe.shipped import find_recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file or by a shipped recipe's name, and apply `section.key=value` overrides.

    Raises `RecipeError` with every unknown key and invalid value, each by its dotted path.
    """
    file = find_recipe(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{file} holds {type(content).__name__}, not a mapping of recipe keys")
    content.setdefault("name", file.stem)
    for override in overrides:
        _apply_override(content, override)
    return parse_recipe(content, source=str(file))


def parse_recipe(content: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """Validate plain data as a recipe; raise `RecipeError` like `load_recipe`, with `source` in front."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [_describe_problem(detail) for detail in error.errors(include_url=False)]
        raise RecipeError(f"{source}: " + "\n".join(problems)) from error


def _apply_override(content: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in `content`, in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override '{override}' is not of the form section.key=value")
    *sections, last = key.split(".")
    target = content
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        if not isinstance(target[section], dict):
            raise RecipeError(f"override '{override}': '{section}' is a value, not a section")
        target = target[section]
    try:
        target[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override '{override}': '{text}' is not valid YAML") from error


def _describe_problem(detail: Any) -> str:
    """Return one line for an error of pydantic."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        allowed = _keys_of_section(path[:-1])
        close = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"unknown key '{key}'{hint} (allowed: {', '.join(allowed)})"
    if detail["type"] == "value_error":  # raised by a validator of a section, which names the value itself
        return f"{key}: {detail['ctx']['error']}".removeprefix(": ")
    message = detail["msg"]
    return f"{key}: {message[0].lower()}{message[1:]} (got {detail['input']!r})"


def _keys_of_section(path: Iterable[str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in path:
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        nested = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not nested:
            return []
        section = nested[0]
    return list(section.model_fields)
