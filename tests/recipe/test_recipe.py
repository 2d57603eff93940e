"""Recipes: typed data with defaults, overrides, and errors that name every problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pathprune.mining.config import MineConfig
from pathprune.recipe import Recipe, RecipeError, load_recipe, parse_recipe, shipped_recipes
from pathprune.recovery import RecoverConfig


def write_recipe(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_named_after_its_file(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_expected_recipes_are_shipped() -> None:
    expected = {
        "quickstart",
        "compare-demo",
        "compare-own-checkpoint",
        "train-demo",
        "reference",
        "own-checkpoint",
        "deit-small-imagenet",
        "vit-base-imagenet",
    }
    assert expected <= set(shipped_recipes())


def test_recovery_is_switched_on_by_any_of_its_keys(tmp_path: Path) -> None:
    assert load_recipe(write_recipe(tmp_path, "name: x")).recover is None
    assert load_recipe(write_recipe(tmp_path, "recover: {}")).recover == RecoverConfig()
    assert load_recipe("reference", ["recover.epochs=3"]).recover == RecoverConfig(epochs=3)


def test_a_recipe_is_named_after_its_file_and_keeps_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, "prune: {ratio: 0.4}"))
    assert recipe.name == "mine"
    assert recipe.prune.ratio == (0.4,)
    assert recipe.mine == MineConfig()
    assert recipe.folder == Path("runs/mine")


def test_overrides_are_read_as_yaml_and_create_sections(tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path, "name: x"),
        ["prune.ratio=[0.2, 0.6]", "model.args.depth=3", "score.criteria=[{name: path, reduce: max}]", "output=/tmp/y"],
    )
    assert recipe.prune.ratio == (0.2, 0.6)
    assert recipe.model.args == {"depth": 3}
    assert recipe.score.criteria == ({"name": "path", "reduce": "max"},)
    assert recipe.folder == Path("/tmp/y")


@pytest.mark.parametrize("value", ["cat", "[cat]"])
def test_a_single_value_stands_for_a_list_of_one(tmp_path: Path, value: str) -> None:
    recipe = load_recipe(write_recipe(tmp_path, f"mine: {{classes: {value}}}\nclasses: {value}"))
    assert recipe.mine.classes == recipe.classes == ("cat",)
    assert MineConfig(classes=None).classes is None


def test_a_dumped_recipe_loads_as_itself(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["prune.block_ratios={0: 0.2}", "data.splits.mine=train[:50]"])
    assert load_recipe(write_recipe(tmp_path, recipe.to_yaml())) == recipe


def test_all_problems_are_reported_at_once_by_their_dotted_path(tmp_path: Path) -> None:
    text = (
        "prune: {ratio: 1.2, rond_to: 8}\nscore: {criteria: [tayler]}\ncompensation: [meen]\nmine: {nodes: 0}\nextra: 1"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(tmp_path, text))
    message = str(caught.value)
    for part in (
        "prune.ratio: ratio 1.2 is out of range; a ratio is the fraction removed: at least 0, less than 1",
        "unknown key 'prune.rond_to'; did you mean 'round_to'?",
        "score.criteria: unknown criterion 'tayler'; did you mean 'taylor'?",
        "compensation: unknown compensation 'meen'; did you mean 'mean'?",
        "mine.nodes: got 0; give a whole number of at least 1, or auto",
        "unknown key 'extra'",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("a: [1", [], "not valid YAML"),
        ("- 1", [], "holds list, not a mapping"),
        ("name: x", ["prune.ratio"], "is not of the form section.key=value"),
        ("prune: {ratio: 0.1}", ["prune.ratio.deep=1"], "'ratio' is a value, not a section"),
        ("name: ../x", [], "name: string should match pattern"),
        (
            "name: x",
            ["train.crop_scale=[1.0, 0.6]"],
            r"\[1, 0.6\] is not a range: give two numbers above 0 and up to 1",
        ),
        (
            "name: x",
            ["train.crop_scale=[0.6, 1.2]"],
            r"\[0.6, 1.2\] is not a range: give two numbers above 0 and up to 1",
        ),
        ("name: x", ["recover.crop_ratio=[0, 1]"], r"\[0, 1\] is not a range: give two numbers above 0, the lower"),
    ],
)
def test_unusable_recipes_raise(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(tmp_path, text), overrides)


def test_a_missing_recipe_raises_with_the_names_of_shipped_ones() -> None:
    with pytest.raises(
        RecipeError, match=r"recipe 'quikstart' does not exist; give a YAML file or one of .*quickstart"
    ):
        load_recipe("quikstart")


def test_python_objects_in_yaml_are_not_constructed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(write_recipe(tmp_path, "name: !!python/object/apply:os.getcwd []"))


def test_images_to_mine_are_counted_in_one_way(tmp_path: Path) -> None:
    recipe = parse_recipe({"name": "x", "mine": {"images_per_class": 5, "batch_size": "auto"}})
    assert (recipe.mine.num_images, recipe.mine.images_per_class, recipe.mine.batch_size) == (None, 5, "auto")
    assert load_recipe(write_recipe(tmp_path, recipe.to_yaml())) == recipe
    with pytest.raises(RecipeError, match="num_images and images_per_class are both given; set one of them to null"):
        parse_recipe({"name": "x", "mine": {"images_per_class": 5, "num_images": 50}})


def test_a_recipe_is_frozen() -> None:
    recipe: Any = parse_recipe({"name": "x"})
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3
