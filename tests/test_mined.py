"""The mining stage of a recipe: its accuracy, its objective, and what its results are bound to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_recipe, write_data, write_model

from pathprune import mined
from pathprune.mining import ClassStats
from pathprune.pipeline import MineResult, mine_recipe
from pathprune.recipe import RecipeError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    write_model(tmp_path / "model")
    return tmp_path


def mine(folder: Path, name: str = "run", **settings: Any) -> MineResult:
    settings = {"num_images": 12, "nodes": 2, **settings}
    return mine_recipe(
        tiny_recipe(folder, output=str(folder / name), mine=settings, score={"criteria": ["path"]}), overwrite=True
    )


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed again")


def test_accuracy_is_stored_and_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = mine(folder).accuracies["all"]
    assert (accuracy.nodes, accuracy.num_images, accuracy.num_neurons) == (2, 12, 24)
    stored = json.loads((folder / "run" / "accuracy" / "all.json").read_text())
    assert stored["num_agreeing"] == accuracy.num_agreeing
    monkeypatch.setattr(mined, "locate_paths", refuse)
    assert mine(folder).accuracies["all"] == accuracy
    with pytest.raises(AssertionError, match="computed again"):
        mine(folder, check_images=3)


def test_a_sample_has_the_size_asked_for_and_none_is_mined_where_none_is(folder: Path) -> None:
    assert mine(folder, check_images=5).accuracies["all"].num_images == 5
    assert mine(folder, "unchecked", check_images=0).accuracies == {}
    assert mine(folder, "read-off", method="activation").accuracies == {}


def test_inaccurate_paths_are_warned_of_with_a_remedy(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine(folder, rule="left-riemann", nodes=1)
    assert "paths (all tokens) miss their goal" in caplog.text
    assert "raise mine.nodes, or let mine.nodes=auto choose" in caplog.text


def test_automatic_nodes_are_stored_and_give_what_the_same_number_gives(folder: Path) -> None:
    automatic = mine(folder, nodes="auto")
    chosen = automatic.accuracies["all"].nodes
    (stats,) = map(ClassStats.load, automatic.files)
    (fixed,) = map(ClassStats.load, mine(folder, "fixed", nodes=chosen).files)
    assert stats.settings == fixed.settings
    assert stats.settings["nodes"] == chosen
    assert all((a == b).all() for a, b in zip(stats.mass, fixed.mass, strict=True))


def test_mixed_precision_is_part_of_what_results_are_bound_to(folder: Path) -> None:
    (exact,) = map(ClassStats.load, mine(folder).files)
    result = mine(folder, precision="bf16")
    (mixed,) = map(ClassStats.load, result.files)
    assert not all((a == b).all() for a, b in zip(exact.mass, mixed.mass, strict=True))
    assert (mixed.settings["precision"], result.accuracies["all"].goal) == ("bf16", 0.98)


def test_another_objective_mines_again(folder: Path) -> None:
    (probability,) = map(ClassStats.load, mine(folder).files)
    (sigmoid,) = map(ClassStats.load, mine(folder, objective="label-probability").files)
    assert not all((a == b).all() for a, b in zip(probability.mass, sigmoid.mass, strict=True))
    assert sigmoid.settings["objective"] == {"name": "label-probability"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nodes": "auto", "check_images": 0}, "nodes: auto is chosen on check_images; give at least 1"),
        ({"precision": "fp16"}, "mine.precision"),
        ({"objective": "zero-shot"}, "mine.objective: objective 'zero-shot' needs a head"),
        ({"objective": "logit"}, "mine.objective"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        mine(folder, **settings)
