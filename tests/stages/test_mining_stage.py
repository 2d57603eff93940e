"""The mining stage of a recipe: its accuracy, its objective, and what its results are bound to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tiny import DATA_CONFIG, NAMES, rows, tiny_recipe

from pathprune.data import DataError, LabelledImages, evaluation_transform, open_source, read_split
from pathprune.mining import ClassStats, PathSet
from pathprune.models.checkpoint import load_pruned, save_pruned
from pathprune.pipeline import MineResult, mine_recipe, prune_recipe, run_recipe
from pathprune.recipe import Recipe, RecipeError
from pathprune.stages import mining, sampling


def mine(folder: Path, name: str = "run", **settings: Any) -> MineResult:
    settings = {"num_images": 12, "nodes": 2, **settings}
    return mine_recipe(
        tiny_recipe(folder, output=str(folder / name), mine=settings, score={"criteria": ["path"]}), overwrite=True
    )


def masses(result: MineResult) -> list[torch.Tensor]:
    """The only file's sums, in memory: mining again replaces it."""
    (stats,) = map(ClassStats.load, result.files)
    return [mass.clone() for mass in stats.mass]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed again")


def test_accuracy_is_stored_and_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = mine(folder).accuracies["all"]
    assert (accuracy.nodes, accuracy.num_images, accuracy.num_neurons) == (2, 12, 24)
    stored = json.loads((folder / "run" / "accuracy" / "all.json").read_text())
    assert stored["num_agreeing"] == accuracy.num_agreeing
    monkeypatch.setattr(mining, "locate_paths", refuse)
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
    exact = masses(mine(folder))
    result = mine(folder, precision="bf16")
    (mixed,) = map(ClassStats.load, result.files)
    assert not all((a == b).all() for a, b in zip(exact, mixed.mass, strict=True))
    assert (mixed.settings["precision"], result.accuracies["all"].goal) == ("bf16", 0.98)


def test_another_objective_mines_again(folder: Path) -> None:
    probability = masses(mine(folder))
    (sigmoid,) = map(ClassStats.load, mine(folder, objective="label-probability").files)
    assert not all((a == b).all() for a, b in zip(probability, sigmoid.mass, strict=True))
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


def test_classes_are_sampled_by_name_or_number(folder: Path) -> None:
    (stats,) = map(ClassStats.load, mine(folder, classes=["owl", 0], num_images=10).files)
    assert stats.num_images.tolist() == [5, 0, 5]
    with pytest.raises(ValueError, match="class 'bird' does not exist; classes are cat, dog, owl"):
        mine(folder, "wrong", classes=["bird"])


def test_what_was_sampled_is_stored_by_index(folder: Path) -> None:
    mine(folder, images_per_class=2, num_images=None)
    stored = load_file(folder / "run" / "images" / "mine.safetensors")
    assert np.bincount(stored["labels"]).tolist() == [2, 2, 2]
    assert (stored["indices"] % 3 == stored["labels"]).all()  # as the tiny images are labelled
    paths = PathSet.load(folder / "run" / "mined" / "all" / "paths.parquet")
    assert sorted(paths.indices.tolist()) == sorted(stored["indices"].tolist())


def biased_model(folder: Path) -> None:
    """Never predicts the last class."""
    model = load_pruned(folder / "model")
    with torch.no_grad():
        model.head.bias[2] = -100
    save_pruned(model, folder / "model")


def test_images_are_mined_for_what_is_predicted_without_any_labels(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    biased_model(folder)
    (stats,) = map(ClassStats.load, mine(folder, targets="prediction").files)
    paths = PathSet.load(folder / "run" / "mined" / "all" / "paths.parquet")
    assert torch.equal(paths.labels, paths.predictions)
    assert torch.equal(paths.targets, paths.predictions)
    assert stats.num_images.tolist() == torch.bincount(paths.predictions, minlength=3).tolist()
    assert stats.num_images[2] == 0 < stats.num_images.sum()
    rows(range(24)).remove_columns("label").to_parquet(str(folder / "data" / "train.parquet"))
    with pytest.raises(
        DataError, match=r"no label for image 0; .*or mine unlabelled images with mine.targets=prediction"
    ):
        mine(folder, "by-label")
    (unlabelled,) = map(ClassStats.load, mine(folder, "unlabelled", targets="prediction").files)
    assert all((a == b).all() for a, b in zip(stats.mass, unlabelled.mass, strict=True))
    monkeypatch.setattr(sampling, "sample_for_mining", refuse)
    mine(folder, "unlabelled", targets="prediction")


def test_only_right_images_are_mined_if_asked(folder: Path) -> None:
    biased_model(folder)
    (stats,) = map(ClassStats.load, mine(folder, images_per_class=3, num_images=None, only_correct=True).files)
    paths = PathSet.load(folder / "run" / "mined" / "all" / "paths.parquet")
    assert torch.equal(paths.labels, paths.predictions)
    assert stats.num_images[2] == 0 < stats.num_images.sum() <= 6
    rows(range(24)).remove_columns("label").to_parquet(str(folder / "data" / "train.parquet"))
    with pytest.raises(ValueError, match=r"mine\.only_correct needs labels"):
        mine(folder, "unlabelled", targets="prediction", only_correct=True)


def tower_recipe(folder: Path, name: str, objective: Any = None, **sections: Any) -> Recipe:
    settings = {"num_images": 12, "nodes": 2, "objective": objective, "check_images": 0}
    model = {"name": str(folder / "tower")}
    base: dict[str, Any] = {"score": {"criteria": ["path", "variance"], "num_images": 12}, "compensation": "none"}
    return tiny_recipe(folder, output=str(folder / name), mine=settings, model=model, **base | sections)


@pytest.fixture
def tower(folder: Path) -> Path:
    """The folder, with the model's head taken off."""
    model = load_pruned(folder / "model")
    model.reset_classifier(0)
    save_pruned(model, folder / "tower", class_names=None)
    return folder


def head(folder: Path) -> dict[str, str]:
    """A zero-shot head whose texts are the rows of the head that the tower lost."""
    weight = load_pruned(folder / "model").head.weight.detach()
    save_file({"text_embeddings": weight}, folder / "head.safetensors", {"class_names": json.dumps(NAMES)})
    return {"name": "zero-shot", "head": str(folder / "head.safetensors")}


@pytest.mark.parametrize("labelled", [True, False])
def test_a_tower_without_classes_is_mined_and_pruned(tower: Path, labelled: bool) -> None:
    if not labelled:
        rows(range(24)).remove_columns("label").to_parquet(str(tower / "data" / "train.parquet"))
    (file,) = mine_recipe(tower_recipe(tower, "mined")).files
    stats = ClassStats.load(file)
    assert stats.class_names == (("cat", "dog", "owl") if labelled else ("all",))
    assert stats.num_images.tolist() == ([4, 4, 4] if labelled else [12])
    checkpoints = prune_recipe(tower_recipe(tower, "pruned"))
    assert [load_pruned(checkpoint).num_classes for checkpoint in checkpoints] == [0] * 4
    with pytest.raises(ValueError, match="has no classifier, so its accuracy cannot be measured"):
        run_recipe(tower_recipe(tower, "run"))
    with pytest.raises(ValueError, match="'damage' compares class probabilities, but the model has no classes"):
        prune_recipe(tower_recipe(tower, "damage", prune={"scope": "global", "normalize": "damage"}))
    with pytest.raises(ValueError, match="'taylor' needs a classifier's loss"):
        prune_recipe(tower_recipe(tower, "taylor", score={"criteria": ["taylor"]}))
    with pytest.raises(ValueError, match="objective cosine predicts no classes"):
        mine_recipe(tiny_recipe(tower, model={"name": str(tower / "tower")}, mine={"targets": "prediction"}))


def test_a_zero_shot_head_makes_a_classifier_of_a_tower(tower: Path) -> None:
    result = run_recipe(tower_recipe(tower, "run", head(tower), prune={"ratio": 0.25}))
    assert [row["variant_id"].split("--")[0] for row in result.metrics] == ["dense", "path", "variance"]
    stats = ClassStats.load(tower / "run" / "mined" / "all" / "stats.safetensors")
    assert stats.class_names == tuple(NAMES)
    assert stats.num_images.tolist() == [4, 4, 4]
    images = torch.stack([image for image, _ in evaluation_images(tower)])
    embeddings = load_pruned(tower / "tower")(images)
    text = load_pruned(tower / "model").head.weight
    nearest = torch.cosine_similarity(embeddings[:, None], text[None], dim=-1).argmax(1)
    labels = torch.tensor([label for _, label in evaluation_images(tower)])
    assert result.metrics[0]["top1"] == pytest.approx((nearest == labels).double().mean().item())
    assert not (tower / "run" / "pruned" / "path--none--0.25" / "head.weight").exists()


def test_a_tower_recovers_by_its_teacher_alone(tower: Path) -> None:
    quick = {"epochs": 1, "batch_size": 8, "validate_steps": 1}
    half = "train[:50%]"
    splits = {"mine": half, "calibrate": half, "train": half, "validation": "train[50%:]"}
    data = {"source": str(tower / "data"), "splits": splits}
    with pytest.raises(ValueError, match="no classifier to learn labels with; set labels to 0"):
        run_recipe(tower_recipe(tower, "refused", head(tower), recover=quick))
    recipe = tower_recipe(tower, "run", head(tower), prune={"ratio": 0.25}, recover={**quick, "labels": 0}, data=data)
    assert [row["recovery"] is not None for row in run_recipe(recipe).metrics] == [False, False, True, False, True]


def evaluation_images(folder: Path) -> LabelledImages:
    images = read_split(open_source(str(folder / "data")), "test")
    return images.with_transform(evaluation_transform(DATA_CONFIG))


def test_a_head_of_another_tower_is_refused_at_once(folder: Path) -> None:
    save_file({"text_embeddings": torch.randn(3, 5)}, folder / "head.safetensors")
    objective = {"name": "zero-shot", "head": str(folder / "head.safetensors")}
    with pytest.raises(ValueError, match="text embeddings have dimension 5, but the model's output has 3"):
        mine(folder, objective=objective)
    with pytest.raises(ValueError, match="zero-shot head nowhere does not exist"):
        mine(folder, objective={"name": "zero-shot", "head": "nowhere"})


def test_images_with_several_labels_are_mined_for_each_of_them(folder: Path) -> None:
    names = datasets.List(datasets.ClassLabel(names=NAMES))
    table = rows(range(6)).remove_columns("label")
    labels = [[0], [0, 2], [], [1, 2], [2], [0, 1, 2]]
    table = table.add_column("label", labels).cast_column("label", names)
    for split in ("train", "test"):
        table.to_parquet(str(folder / "data" / f"{split}.parquet"))
    result = mine(folder, objective="label-probability", num_images=None)
    (stats,) = map(ClassStats.load, result.files)
    assert stats.num_images.tolist() == [3, 2, 4]
    paths = PathSet.load(folder / "run" / "mined" / "all" / "paths.parquet")
    pairs = sorted(zip(paths.indices.tolist(), paths.targets.tolist(), strict=True))
    assert pairs == [(index, label) for index, several in enumerate(labels) for label in several]
    with pytest.raises(DataError, match="contains lists; images with several labels can be mined"):
        mine(folder, "one")
    with pytest.raises(ValueError, match="only_correct needs one label per image"):
        mine(folder, "right", objective="label-probability", only_correct=True)
