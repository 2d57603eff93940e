"""Samples of a split: balanced, in the split's proportions, seeded and in random order."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import rows

from pathprune.data import DataError, LabelledImages, read_split, sample_balanced, sample_stratified


def images_with(labels: list[int]) -> LabelledImages:
    """Return images with these labels, in this order."""
    counts = np.zeros(3, dtype=int)
    seeds = []
    for label in labels:
        seeds.append(int(3 * counts[label] + label))
        counts[label] += 1
    return read_split(lambda _: rows(seeds), "train")


def test_a_sample_is_balanced_seeded_and_without_duplicates() -> None:
    images = read_split(lambda _: rows(range(30)), "train")
    sample = sample_balanced(images, num_images=9, seed=1)
    assert np.bincount(sample.labels).tolist() == [3, 3, 3]
    assert len(set(sample.indices)) == 9
    assert (sample_balanced(images, num_images=9, seed=1).indices == sample.indices).all()
    assert set(sample_balanced(images, num_images=9, seed=2).indices) != set(sample.indices)


def test_sampling_per_class_takes_all_images_of_a_rare_class() -> None:
    images = read_split(lambda _: rows([*range(30), 30, 33, 36]), "train")  # 13, 10 and 10 of each class
    sample = sample_balanced(images.take(np.flatnonzero(images.indices > 20)), images_per_class=5, seed=1)
    assert np.bincount(sample.labels).tolist() == [5, 3, 3]
    assert sample.indices.min() > 20
    with pytest.raises(DataError, match="images_per_class is 0"):
        sample_balanced(images, images_per_class=0, seed=1)


@pytest.mark.parametrize("num_images", [None, 60, 45])
def test_prefixes_and_halves_of_a_balanced_sample_are_balanced_though_the_split_is_sorted(
    num_images: int | None,
) -> None:
    images = images_with([0] * 20 + [1] * 20 + [2] * 20)
    sample = sample_balanced(images, num_images=num_images, seed=0)
    assert np.bincount(sample.labels[:9]).tolist() == [3, 3, 3]
    for half in (sample.labels[::2], sample.labels[1::2]):
        assert np.bincount(half).min() >= len(half) // 3 - 4
    assert (sample_balanced(images, num_images=num_images, seed=0).indices == sample.indices).all()
    assert (sample_balanced(images, num_images=num_images, seed=1).indices != sample.indices).any()


def test_unlabelled_images_are_sampled_in_random_order() -> None:
    images = read_split(lambda _: rows(range(30)).remove_columns("label"), "train", labels="any")
    sample = sample_balanced(images, seed=0)
    assert sorted(sample.indices) == list(range(30))
    assert (sample.indices != np.arange(30)).any()


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [
        (4, [3, 1, 0]),  # exact shares 3, 0.8, 0.2
        (10, [7, 2, 1]),  # 7.5, 2, 0.5: a tie for the last image
        (20, [15, 4, 1]),
        (33, [25, 6, 2]),  # 24.75, 6.6, 1.65: the largest remainders are those of classes 0 and 2
        (39, [29, 8, 2]),  # 29.25, 7.8, 1.95
        (40, [30, 8, 2]),
    ],
)
def test_a_stratified_sample_has_the_proportions_of_the_split(num_images: int, expected: list[int]) -> None:
    images = images_with([0] * 30 + [1] * 8 + [2] * 2)
    counts = np.bincount(sample_stratified(images, num_images=num_images, seed=3).labels, minlength=3).tolist()
    assert counts in ([expected, [8, 2, 0]] if num_images == 10 else [expected])


def test_a_stratified_sample_is_random_seeded_and_without_duplicates() -> None:
    images = images_with([0] * 30 + [1] * 8 + [2] * 2)
    sample = sample_stratified(images, num_images=20, seed=0)
    assert len(set(sample.indices)) == 20
    assert (sample_stratified(images, num_images=20, seed=0).indices == sample.indices).all()
    assert set(sample_stratified(images, num_images=20, seed=1).indices) != set(sample.indices)
    whole = sample_stratified(images, num_images=None, seed=0)
    assert whole.indices.tolist() == list(range(40))
    with pytest.raises(DataError, match="num_images is 0"):
        sample_stratified(images, num_images=0, seed=1)


def test_a_stratified_sample_estimates_the_accuracy_of_an_unbalanced_split() -> None:
    """A model that is right on the frequent class alone: its accuracy is the share of the class."""
    images = images_with([0] * 30 + [1] * 8 + [2] * 2)
    assert (sample_stratified(images, num_images=20, seed=0).labels == 0).mean() == 30 / 40
