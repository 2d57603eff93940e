"""A recipe for some of the classes only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_recipe

from pathprune.data import DataError
from pathprune.data.class_names import class_indices
from pathprune.mining import ClassStats
from pathprune.models.adapt import adapt
from pathprune.models.checkpoint import load_pruned
from pathprune.models.loading import load_model
from pathprune.models.slicing import slice_head
from pathprune.pipeline import run_recipe
from pathprune.recipe import RecipeError
from pathprune.stages.experiment import open_experiment


def sliced(folder: Path, **sections: Any) -> Any:
    model = {"name": str(folder / "model"), "slice_head": True}
    return tiny_recipe(folder, **{"classes": ["owl", "cat"], "model": model} | sections)


def test_classes_are_found_by_name_or_index_in_the_order_given() -> None:
    assert class_indices(["owl", 0, "1"], ("cat", "dog", "owl")) == [2, 0, 1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["bat"], "class 'bat' does not exist; classes are cat, dog, dog"),
        ([3], "class 3 does not exist; classes are 0 … 2"),
        (["dog"], "2 classes are called 'dog'; give an index"),
        (["cat", 0], r"class 0 \(cat\) is given twice"),
    ],
)
def test_classes_that_are_not_there_are_refused(keys: list[int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_indices(keys, ("cat", "dog", "dog"))


def test_a_sliced_head_gives_the_logits_of_its_classes(folder: Path) -> None:
    whole = load_model(str(folder / "model"))
    part = slice_head(whole, [2, 0])
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(part.model(images), whole.model(images)[:, [2, 0]])
    assert part.class_names == ("owl", "cat")
    assert adapt(part.model).num_classes == 2
    assert adapt(whole.model).num_classes == 3  # the model at hand is left as it is


def test_a_head_that_is_not_linear_is_not_sliced(folder: Path) -> None:
    whole = load_model(str(folder / "model"))
    whole.model.head = torch.nn.Sequential(whole.model.head)
    with pytest.raises(ValueError, match="the head of this VisionTransformer cannot be sliced"):
        slice_head(whole, [0, 1])


def test_everything_is_done_on_the_images_of_the_classes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny_recipe(folder, classes=["owl", 0], score={"criteria": ["path"], "num_images": 12})
    result = run_recipe(recipe)
    assert ClassStats.load(result.folder / "mined" / "all" / "stats.safetensors").num_images.tolist() == [3, 0, 3]
    splits = open_experiment(recipe).splits
    assert sorted(splits.of("calibrate").images.labels.tolist()) == [0] * 6 + [2] * 6
    for row in result.metrics:
        assert row["num_images"] == 20
        assert row["classes"] == ["owl", 0]
        assert row["per_class"][1] is None
    assert "no images were mined" not in caplog.text


def test_a_sliced_model_is_among_its_classes_and_its_checkpoint_knows_their_names(folder: Path) -> None:
    result = run_recipe(sliced(folder, prune={"ratio": [0.5]}))
    dense = load_model(str(folder / "model")).model
    splits = open_experiment(sliced(folder, output=str(folder / "other"))).splits
    images, labels = next(iter(splits.batches("evaluate", batch_size=30)))
    assert sorted(labels.tolist()) == [0] * 10 + [1] * 10
    right = float((dense(images)[:, [2, 0]].argmax(1) == labels).double().mean())
    assert result.metrics[0]["top1"] == pytest.approx(right)
    assert all(len(row["per_class"]) == 2 for row in result.metrics)
    saved = result.folder / "pruned" / "path--mean--0.5"
    assert load_pruned(saved).pretrained_cfg["label_names"] == ("owl", "cat")
    logits = load_pruned(saved)(images)
    assert logits.shape == (20, 2)
    evaluated = result.evaluations["path--mean--0.5"]
    np.testing.assert_array_equal(evaluated.predictions, logits.argmax(1).numpy())


def test_a_class_without_images_is_refused_by_its_split(folder: Path) -> None:
    data = {"source": str(folder / "data"), "splits": {"mine": "train[:1]"}}
    with pytest.raises(DataError, match=r"split 'train\[:1\]' has no images of class 2 \(owl\), which `classes` names"):
        run_recipe(sliced(folder, data=data))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"classes": ["cat", "bat"]}, "class 'bat' does not exist"),
        ({"classes": ["owl"]}, "name at least two classes"),
        ({"classes": []}, "name at least two classes"),
        ({"classes": ["owl", "owl"]}, "'owl' is given twice"),
    ],
)
def test_classes_that_cannot_be_are_one_clear_line(folder: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises((RecipeError, ValueError), match=message):
        open_experiment(sliced(folder, **sections))
