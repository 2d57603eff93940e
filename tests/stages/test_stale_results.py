"""Changes of data, class names and code between two runs in one folder: nothing stale is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from interception import refuse_steps
from tiny import NAMES, encoded, tiny_recipe

import pathprune
from pathprune.mining import ClassStats, PathSet
from pathprune.models.pruned_config import read_pruned_config
from pathprune.pipeline import mine_recipe, run_recipe
from pathprune.stages.experiment import open_experiment

MINE = {"num_images": None, "nodes": 2, "check_images": 0}


def write_images(file: Path, labels: list[int], *, names: list[str] = NAMES, first: int = 0) -> None:
    """Write one image per label, whose brightest channel is the label."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    images = [encoded(first + place, label) for place, label in enumerate(labels)]
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(str(file))


@pytest.mark.parametrize("slice_head", [False, True])
def test_images_added_ahead_do_not_shift_the_classes_that_are_mined(folder: Path, slice_head: bool) -> None:
    train = folder / "data" / "train.parquet"
    recipe = tiny_recipe(
        folder,
        classes=["dog", "owl"],
        mine=MINE,
        score={"criteria": ["path"]},
        model={"name": str(folder / "model"), "slice_head": slice_head},
    )
    write_images(train, [0] * 3 + [1, 2] * 4, first=2)
    mine_recipe(recipe)
    write_images(train, [0] * 5 + [1, 2] * 4, first=0)
    (file,) = mine_recipe(recipe).files
    splits = open_experiment(recipe).splits
    first = 0 if slice_head else 1
    paths = PathSet.load(file.with_name("paths.parquet"))
    true = splits.candidates("mine")
    label_of = dict(zip(true.indices.tolist(), true.labels.tolist(), strict=True))
    assert [label_of[index] for index in paths.indices.tolist()] == paths.labels.tolist()
    assert ClassStats.load(file).num_images.tolist()[first:] == [4, 4]


def test_a_class_list_that_changes_with_overwrite_is_mined_again(folder: Path) -> None:
    def mined(classes: list[str]) -> PathSet:
        model = {"name": str(folder / "model"), "slice_head": True}
        recipe = tiny_recipe(folder, classes=classes, model=model, mine=MINE, score={"criteria": ["path"]})
        (file,) = mine_recipe(recipe, overwrite=True).files
        return PathSet.load(file.with_name("paths.parquet"))

    assert set((mined(["cat", "dog"]).indices % 3).tolist()) == {0, 1}
    assert set((mined(["dog", "owl"]).indices % 3).tolist()) == {1, 2}


def test_a_renamed_class_is_scored_and_saved_under_its_new_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = folder / "model" / "config.json"
    content = json.loads(config.read_text())
    content["pathprune"]["class_names"] = None  # so that the names are the data's
    content.pop("label_names", None)
    config.write_text(json.dumps(content))
    settings: dict[str, Any] = {
        "mine": MINE,
        "score": {"criteria": [{"name": "path", "classes": ["cat"]}], "num_images": 12},
        "compensation": "none",
        "prune": {"ratio": 0.5, "save": "all"},
    }
    for names in (NAMES, ["dog", "cat", "owl"]):
        for split, count in (("train", 24), ("test", 30)):
            write_images(
                folder / "data" / f"{split}.parquet", [0, 1, 2] * (count // 3), names=names, first=1000 * count
            )
        with monkeypatch.context() as patch:
            if names != NAMES:  # a new name needs no new mining
                refuse_steps(patch, "locate_paths")
            result = run_recipe(tiny_recipe(folder, **settings))
        stats = ClassStats.load(result.folder / "mined" / "all" / "stats.safetensors")
        assert stats.class_names == tuple(names)
        assert PathSet.load(result.folder / "mined" / "all" / "paths.parquet").class_names == tuple(names)
        fresh = run_recipe(tiny_recipe(folder, **settings, output=str(folder / names[0])))
        assert (result.folder / "plans").exists()
        for file in (result.folder / "plans").iterdir():
            assert file.read_text() == (fresh.folder / "plans" / file.name).read_text()
        (checkpoint,) = (result.folder / "pruned").iterdir()
        assert read_pruned_config(checkpoint).class_names == tuple(names)


CRITERION = """
import torch

from pathprune import Criterion
from pathprune.scoring import register


@register("by-column")
class ByColumn(Criterion):
    def __call__(self, context):
        return {site.name: torch.arange(site.width).double() for site in context.adapted.sites}
"""


def test_an_edited_criterion_scores_anew(folder: Path) -> None:
    plugin = folder / "plugin"
    info = plugin / "by_column-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: by-column\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pathprune.criteria]\nby-column = by_column:ByColumn\n")
    recipe = folder / "recipe.yaml"
    settings: dict[str, Any] = {
        "score": {"criteria": ["magnitude-l2"]},
        "compensation": "none",
        "prune": {"ratio": 0.5},
    }
    recipe.write_text(tiny_recipe(folder, **settings).to_yaml().replace("magnitude-l2", "by-column"))
    path = os.pathsep.join([str(plugin), str(Path(pathprune.__file__).parents[1])])
    kept = []
    for source in (CRITERION, CRITERION.replace("torch.arange", "-torch.arange")):
        (plugin / "by_column.py").write_text(source)
        command = [sys.executable, "-m", "pathprune", "prune", str(recipe), "--overwrite"]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path}, capture_output=True)
        (checkpoint,) = (folder / "run" / "pruned").iterdir()
        kept.append(read_pruned_config(checkpoint).kept)
    assert kept[0] is not None
    assert kept[1] is not None
    assert [columns[0] for columns in kept[0].values()] == [24, 24]
    assert [columns[0] for columns in kept[1].values()] == [0, 0]
