"""Sampling for mining: who is chosen, and how many images it takes the model to tell."""

import numpy as np
import pytest
from tiny_split import tiny_images

from pathprune.data import SKIPPED, DataError
from pathprune.mining import Sampling, sample_for_mining, sampling

WRONG = (4, 10, 11)  # indices that the model takes for the class after their own


class Model:
    """Predicts an image's label (its index mod 3), but for WRONG; index 7 cannot be read."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, images):
        self.seen += images.indices.tolist()
        predictions = (images.indices + np.isin(images.indices, WRONG)) % 3
        return np.where(images.indices == 7, SKIPPED, predictions)


def sample(number=30, seed=0, **settings):
    model = Model()
    chosen = sample_for_mining(tiny_images(number), Sampling(**settings), num_classes=3, predict=model, seed=seed)
    return chosen, model.seen


def test_labels_are_sampled_without_asking_the_model():
    chosen, seen = sample(num_images=9)
    assert np.bincount(chosen.labels).tolist() == [3, 3, 3]
    assert seen == []
    chosen, _ = sample(images_per_class=4, classes=[0, 2])
    assert np.bincount(chosen.labels).tolist() == [4, 0, 4]
    assert set(chosen.indices % 3) == {0, 2}


def test_right_images_of_every_class_are_as_many_as_asked_for():
    chosen, _ = sample(images_per_class=7, only_correct=True)
    assert np.bincount(chosen.labels).tolist() == [7, 7, 7]
    assert not set(chosen.indices) & {*WRONG, 7}
    everything, _ = sample(only_correct=True)
    assert set(everything.indices) == set(range(30)) - {*WRONG, 7}


def test_images_count_for_the_class_that_is_predicted():
    chosen, _ = sample(by="prediction")
    assert set(chosen.indices) == set(range(30)) - {7}
    by_index = dict(zip(chosen.indices.tolist(), chosen.labels.tolist(), strict=True))
    assert [by_index[index] for index in (3, 4, 10, 11)] == [0, 2, 2, 0]
    assert chosen.class_names == ()
    some, _ = sample(by="prediction", classes=[2], images_per_class=5)
    assert some.labels.tolist() == [2] * 5
    assert all(by_index[index] == 2 for index in some.indices.tolist())


@pytest.mark.parametrize("settings", [{"by": "prediction"}, {"only_correct": True}])
def test_the_model_is_asked_no_longer_than_it_takes_to_fill_every_class(monkeypatch, settings):
    monkeypatch.setattr(sampling, "PREDICTION_BLOCK", 5)
    chosen, seen = sample(images_per_class=2, **settings)
    assert np.bincount(chosen.labels).tolist() == [2, 2, 2]
    assert 6 <= len(seen) < 25
    assert len(seen) == len(set(seen))
    _, seen = sample(num_images=None, **settings)
    assert len(seen) == 30


def test_labels_in_plenty_are_not_predicted(monkeypatch):
    monkeypatch.setattr(sampling, "PREDICTION_BLOCK", 5)
    # class 1 has fewer right images than asked for, so that all of it is looked at
    chosen, seen = sample(number=12, images_per_class=3, only_correct=True)
    assert np.bincount(chosen.labels).tolist() == [3, 1, 3]
    assert {index for index in range(12) if index % 3 == 1} <= set(seen)


def test_a_seed_gives_one_sample_and_another_seed_another():
    settings = {"by": "prediction", "num_images": 6}
    first, again, other = (sample(seed=seed, **settings)[0].indices.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_nothing_to_mine_is_said():
    with pytest.raises(DataError, match=r"split 'train' has no images of the classes in mine.classes; choose other"):
        sample(number=2, classes=[2])
    with pytest.raises(DataError, match=r"of the classes in mine.classes that the model classifies correctly; choose"):
        sample_for_mining(
            tiny_images(5).take(np.flatnonzero(tiny_images(5).indices == 4)),
            Sampling(classes=[1], only_correct=True),
            num_classes=3,
            predict=Model(),
            seed=0,
        )
