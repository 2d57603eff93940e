"""Measurements of paths: joining images, means over paths, and tensors by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pathprune.inspection import PATH_KINDS, Effects, PathMeasure, PathMeasures


def build_measure(start: float, *, num_images: int = 2) -> PathMeasure:
    """Return a measure whose five tensors hold consecutive numbers from `start` on."""
    jas, *effects = (start + torch.arange(5 * num_images).double()).view(5, num_images)
    return PathMeasure(jas, removed=Effects(effects[0], effects[1]), enhanced=Effects(effects[2], effects[3]))


def build_measures(start: float) -> PathMeasures:
    return PathMeasures({kind: build_measure(start + 100 * place) for place, kind in enumerate(PATH_KINDS)})


def assert_equal(measures: PathMeasures, expected: PathMeasures) -> None:
    tensors, expected_tensors = measures.to_tensors(), expected.to_tensors()
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in expected_tensors.items():
        assert torch.equal(tensors[name], tensor), name


def test_kinds_are_the_mining_methods_and_random() -> None:
    assert PATH_KINDS == ("jas", "activation", "influence-pattern", "random")


def test_images_are_joined_in_order() -> None:
    joined = PathMeasures.concat([build_measures(0), build_measures(1000)])
    assert joined.num_images == 4
    assert joined["jas"].jas.tolist() == [0, 1, 1000, 1001]
    assert joined["activation"].removed.probability.tolist() == [102, 103, 1102, 1103]
    assert joined["random"].enhanced.correct.tolist() == [308, 309, 1308, 1309]


def test_the_mean_is_taken_image_by_image() -> None:
    mean = PathMeasure.mean([build_measure(0), build_measure(10), build_measure(50)])
    assert mean.jas.tolist() == [20, 21]
    assert mean.removed.correct.tolist() == [24, 25]
    assert mean.enhanced.probability.tolist() == [26, 27]


def test_a_file_holds_every_tensor_under_its_kind_and_name(tmp_path: Path) -> None:
    measures = build_measures(0)
    save_file(measures.to_tensors(), tmp_path / "measures.safetensors")
    tensors = load_file(tmp_path / "measures.safetensors")
    names = ("jas", "removed.probability", "removed.correct", "enhanced.probability", "enhanced.correct")
    assert set(tensors) == {f"{kind}.{name}" for kind in PATH_KINDS for name in names}
    assert tensors["influence-pattern.removed.probability"].tolist() == [202, 203]
    assert_equal(PathMeasures.from_tensors(tensors), measures)


def test_missing_tensors_are_refused() -> None:
    tensors = build_measures(0).to_tensors()
    del tensors["random.enhanced.correct"]
    with pytest.raises(KeyError, match=r"enhanced\.correct"):
        PathMeasures.from_tensors(tensors)
