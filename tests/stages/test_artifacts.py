"""Stored results: every kind with its inputs, and the changes that make each stale."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from tiny import tiny_recipe

import pathprune
from pathprune.artifacts import JSON, ArtifactKind
from pathprune.recipe import Recipe
from pathprune.runs import RunFolder
from pathprune.stages.experiment import open_experiment
from pathprune.stages.variants import label, variants

INPUTS = {
    "accuracy/{}.json": ("model", "images", "tokens", "settings", "nodes", "check_images"),
    "bench/{}.json": (
        *("models", "architecture", "backend", "images", "settings", "threads", "device", "machine", "torch"),
    ),
    "budgets/latency-{}.json": ("ladder", "ratio", "setting"),
    "damage/{}--{}.json": ("model", "models", "calibration", "num_images", "head"),
    "evaluations/{}.safetensors": ("model", "variant", "images", "class_names", "head", "precision"),
    "images/mine.safetensors": ("sampling", "seed", "positions", "labels", "predictions"),
    "inspect/exciting.safetensors": ("mining", "columns", "number"),
    "inspect/measured.safetensors": ("mining", "num_images", "random_paths", "seed", "factors"),
    "latency.json": ("widths", "setting"),
    "mined/{}": ("model", "images", "positions", "tokens", "settings"),
    "model": ("training",),
    "plans/{}.json": ("plan",),
    "pruned/{}": ("model", "plan", "compensation", "calibration", "class_names", "seed", "format"),
    "recovered/{}": ("training",),
    "recovering/{}/round-{}/model": ("training",),
    "rows/{}.json": ("evaluation", "dense", "variant", "plan", "seed", "version"),
    "scores/{}.safetensors": ("model", "criterion", "mining", "calibration", "classes", "class_names", "seed"),
    "statistics.safetensors": ("model", "images", "covariance"),
}


def find_kinds() -> Iterator[ArtifactKind[Any]]:
    """Find every artifact that a module of the package declares."""
    for module in pkgutil.walk_packages(pathprune.__path__, "pathprune."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, ArtifactKind):
                    yield value


def test_every_artifact_is_listed_here_with_its_inputs() -> None:
    assert {kind.path: kind.inputs for kind in find_kinds()} == INPUTS


@pytest.mark.parametrize(
    ("path", "changed"), [(path, name) for path, inputs in INPUTS.items() for name in inputs], ids=str
)
def test_an_artifact_with_another_input_is_stale(tmp_path: Path, path: str, changed: str) -> None:
    kind: ArtifactKind[Any] = ArtifactKind(path, INPUTS[path], JSON)
    place, inputs = ("a", "b"), dict.fromkeys(INPUTS[path], "old")
    folder = RunFolder(tmp_path)
    folder.write(kind.of(*place, **inputs), {"content": 1})
    assert folder.read(kind.of(*place, **inputs)) == {"content": 1}
    assert folder.read(kind.of(*place, **inputs | {changed: "new"})) is None


def test_an_artifact_needs_exactly_its_inputs() -> None:
    kind = ArtifactKind("scores/{}", ("model", "seed"), JSON)
    with pytest.raises(TypeError, match=r"scores/\{\} has the inputs \['model', 'seed'\], got \['model'\]"):
        kind.of("path", model="x")


def keys_of(recipe: Recipe) -> dict[str, str]:
    """Return the key of every artifact that a run of the recipe reads."""
    opened = open_experiment(recipe, overwrite=True)
    keys = {
        "sample": opened.mining.sample.key,
        "mined": opened.mining.artifact("all").key,
        "statistics": opened.scoring.statistics_artifact().key,
        "dense": opened.evaluator.artifact("dense").key,
        "latency": str(opened.stopwatch.setting),
    }
    for variant in variants(recipe):
        keys[f"scores {label(variant.criterion)}"] = opened.scoring.artifact(variant.criterion).key
        plan = opened.planner.plan(variant).plan
        keys[f"pruned {label(variant.compensation)}"] = opened.pruning.artifact(variant, plan).key
    return keys


MINED = {"sample", "mined", "scores path"}
CALIBRATED = {"statistics", "scores path", "pruned mean"}
ALL = MINED | CALIBRATED | {"dense", "latency"}


@pytest.mark.parametrize(
    ("sections", "stale"),
    [
        ({"mine": {"num_images": 9, "nodes": 2}}, MINED | {"pruned mean"}),  # another plan
        ({"mine": {"num_images": 12, "nodes": 3}}, {"mined", "scores path"}),
        ({"score": {"criteria": ["path"], "num_images": 9}}, CALIBRATED),
        ({"evaluate": {"num_images": 9, "latency": False}}, {"dense"}),
        ({"evaluate": {"latency": False, "latency_batch_size": 3}}, {"latency"}),
        ({"compensation": ["mean", {"name": "least-squares"}]}, {"statistics"}),  # now with covariances
        ({"mixed_precision": "bf16"}, {"dense", "latency"}),
        ({"model": {"name": "model", "data_config": {"mean": (0.1, 0.1, 0.1)}}}, ALL - {"sample"}),
    ],
    ids=str,
)
def test_a_changed_setting_makes_these_artifacts_stale(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], stale: set[str]
) -> None:
    monkeypatch.chdir(folder)
    base: dict[str, Any] = {
        "mine": {"num_images": 12, "nodes": 2},
        "score": {"criteria": ["path"], "num_images": 12},
        "compensation": ["mean"],
        "prune": {"ratio": [0.5]},
        "evaluate": {"latency": False},
    }
    before = keys_of(tiny_recipe(folder, **base))
    AcceleratorState._reset_state()
    after = keys_of(tiny_recipe(folder, **base | sections))
    assert {name for name, key in before.items() if after[name] != key} == stale
