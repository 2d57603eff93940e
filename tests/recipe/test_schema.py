"""The JSON schema accepts what a recipe accepts, and the generated files beside the recipes are up to date."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import pytest
import yaml
from jsonschema import Draft7Validator

from pathprune.mining import METHODS, RULES
from pathprune.recipe import Recipe, RecipeError, copy_recipe, load_recipe, parse_recipe, read_summary, shipped_recipes
from pathprune.recipe.generate import generated_files
from pathprune.recipe.schema import recipe_schema
from pathprune.recipe.shipped import SCHEMA_COMMENT, recipes_folder
from pathprune.recovery import RecoverConfig, TrainConfig
from pathprune.scoring import Criterion, criteria, list_criteria, registry


class Custom(Criterion):
    """Score of another package.

    More text.
    """

    power: float = 2.0

    def __call__(self, context: object) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    schema = recipe_schema()
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


@pytest.mark.parametrize("name", ["reference.yaml", "recipe.schema.json"])
def test_generated_files_are_up_to_date(name: str) -> None:
    text = (recipes_folder() / name).read_text(encoding="utf-8")
    assert text == generated_files()[name], "run `python -m pathprune.recipe.generate` and commit its changes"


def test_the_reference_has_every_key_with_its_default() -> None:
    keys = yaml.safe_load(generated_files()["reference.yaml"])
    assert keys == Recipe(name="reference").model_dump(mode="json")


def test_the_reference_has_the_defaults_of_recovery_in_a_comment() -> None:
    text = generated_files()["reference.yaml"]
    block = text[text.index("recover: null") : text.index("\ntrain:")].splitlines()[1:]
    keys = yaml.safe_load("\n".join(line.removeprefix("#") for line in block if line.startswith("#  ")))
    recovery, training = RecoverConfig().model_dump(mode="json"), TrainConfig().model_dump(mode="json")
    assert keys == {key: value for key, value in recovery.items() if key not in training or value != training[key]}


def test_the_reference_fits_120_columns() -> None:
    assert max(map(len, generated_files()["reference.yaml"].splitlines())) <= 120


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_match_the_schema_and_name_it(name: str, validator: Draft7Validator) -> None:
    file = shipped_recipes()[name]
    text = file.read_text(encoding="utf-8")
    assert text.splitlines()[0] == SCHEMA_COMMENT
    assert (file.parent / SCHEMA_COMMENT.partition("$schema=")[2]).is_file()
    assert read_summary(file)[0].isupper()
    assert read_summary(file).endswith(".")
    validator.validate(yaml.safe_load(text))


def test_a_copied_recipe_names_the_installed_schema(tmp_path: Path) -> None:
    copy_recipe("quickstart", tmp_path / "mine.yaml")
    first, *rest = (tmp_path / "mine.yaml").read_text(encoding="utf-8").splitlines()
    assert rest == shipped_recipes()["quickstart"].read_text(encoding="utf-8").splitlines()[1:]
    scheme, _, path = first.partition("$schema=")[2].partition("://")
    assert scheme == "file"
    assert Path(url2pathname(path)).samefile(recipes_folder() / "recipe.schema.json")
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe("quickstart")


RECIPES: list[dict[str, Any]] = [
    {},
    {"compensation": "mean", "classes": "cat", "trackers": "wandb", "compare": {"seeds": 1}},
    {"compensation": {"name": "sequential", "ridge": "cross-validated", "reconstruct": 0}},
    {"score": {"criteria": {"name": "path", "reduce": "max", "classes": ["cat", 1], "class_weights": {"cat": 2}}}},
    {"prune": {"ratio": None, "max_drop": 1}, "data": {"splits": {"validation": "val"}}},
    {"prune": {"ratio": [0, 0.5], "block_ratios": {"0": 0.5}, "save": "all"}},
    {"mine": {"nodes": "auto", "classes": "cat", "objective": "cosine", "batch_size": 2}},
    {"mine": {"objective": {"name": "zero-shot", "head": "head.safetensors"}, "classes": None}},
    {"recover": {}, "train": {"distill": {"hidden": 1}}},
    {"recover": {"distill": None, "crop_scale": [0.5, 1], "criteria": "path"}},
    {"model": {"args": {"depth": 3}, "data_config": {"mean": [0.5, 0.5, 0.5], "interpolation": "bicubic"}}},
    {"prnue": {}},
    {"prune": {"rond_to": 8}},
    {"prune": {"ratio": 1.0}},
    {"prune": {"block_ratios": {"0": 1.5}}},
    {"prune": {"scope": "local"}},
    {"score": {"criteria": []}},
    {"score": {"criteria": ["tayler"]}},
    {"score": {"criteria": {"name": "path", "redcue": "max"}}},
    {"score": {"criteria": {"name": "path", "reduce": "min"}}},
    {"score": {"criteria": {"reduce": "max"}}},
    {"compensation": {"name": "least-squares", "ridge": -1}},
    {"mine": {"nodes": 0}},
    {"mine": {"objective": "zero-shoot"}},
    {"mixed_precision": "fp8"},
    {"recover": {"distill": {"hiden": 1}}},
    {"train": {"crop_scale": [1]}},
    {"model": {"data_config": {"average": 1}}},
    {"model": {"data_config": {"mean": [0.5]}}},
]


@pytest.mark.parametrize("content", RECIPES, ids=str)
def test_the_schema_accepts_what_a_recipe_accepts(content: dict[str, Any], validator: Draft7Validator) -> None:
    try:
        parse_recipe(content)
        is_recipe = True
    except RecipeError:
        is_recipe = False
    assert validator.is_valid(content) == is_recipe


def test_the_schema_lists_the_methods_and_rules_of_the_miner() -> None:
    keys = recipe_schema()["$defs"]["MineConfig"]["properties"]
    assert set(keys["method"]["enum"]) == set(METHODS)
    assert set(keys["rule"]["enum"]) == set(RULES)


def undescribed(schema: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of keys without a description."""
    if isinstance(schema, dict):
        for key, value in schema.get("properties", {}).items():
            if "description" not in value and "$ref" not in value and not path.endswith("data_config"):
                yield f"{path}.{key}"
        for name, value in schema.items():
            yield from undescribed(value, f"{path}.{name}")
    elif isinstance(schema, list):
        for place, value in enumerate(schema):
            yield from undescribed(value, f"{path}.{place}")


def test_every_key_and_option_has_a_description() -> None:
    assert list(undescribed(recipe_schema())) == []


def test_the_schema_has_the_criteria_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("custom", f"{__name__}:Custom", "pathprune.criteria")
    monkeypatch.setattr(criteria._CRITERIA, "_classes", dict(criteria._CRITERIA._classes))  # forget it afterwards
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])
    assert "custom" in list_criteria()
    (custom,) = (
        option
        for option in recipe_schema()["$defs"]["Criterion"]["anyOf"]
        if option.get("properties", {}).get("name", {}).get("const") == "custom"
    )
    assert custom["description"] == "Score of another package."
    assert custom["properties"]["power"] == {"default": 2.0, "type": "number"}
