"""Sampling for mining: the chosen images, and the number of images that are predicted for the choice."""

import numpy as np
import pytest
from tiny_split import load_tiny_images

from pathprune.data import SKIPPED, DataError
from pathprune.mining import Sampling, sample_for_mining, sampling

MISCLASSIFIED = (4, 10, 11)  # indices, each predicted as the class after its own


class Model:
    """Predictor of an image's label (its index mod 3), except for `MISCLASSIFIED`. Image 7 is unreadable."""

    def __init__(self) -> None:
        self.predicted: list[int] = []  # indices

    def __call__(self, images):
        self.predicted += images.indices.tolist()
        predictions = (images.indices + np.isin(images.indices, MISCLASSIFIED)) % 3
        return np.where(images.indices == 7, SKIPPED, predictions)


def sample(number=30, seed=0, **settings):
    """Return the chosen images, and the indices of the predicted images."""
    model = Model()
    chosen = sample_for_mining(load_tiny_images(number), Sampling(**settings), num_classes=3, predict=model, seed=seed)
    return chosen, model.predicted


def test_labels_are_sampled_without_predictions():
    chosen, predicted = sample(num_images=9)
    assert np.bincount(chosen.labels).tolist() == [3, 3, 3]
    assert predicted == []
    chosen, _ = sample(images_per_class=4, classes=[0, 2])
    assert np.bincount(chosen.labels).tolist() == [4, 0, 4]
    assert set(chosen.indices % 3) == {0, 2}


def test_every_class_gets_its_number_of_correctly_classified_images():
    chosen, _ = sample(images_per_class=7, only_correct=True)
    assert np.bincount(chosen.labels).tolist() == [7, 7, 7]
    assert not set(chosen.indices) & {*MISCLASSIFIED, 7}
    everything, _ = sample(only_correct=True)
    assert set(everything.indices) == set(range(30)) - {*MISCLASSIFIED, 7}


def test_images_count_for_their_predicted_class():
    chosen, _ = sample(by="prediction")
    assert set(chosen.indices) == set(range(30)) - {7}
    by_index = dict(zip(chosen.indices.tolist(), chosen.labels.tolist(), strict=True))
    assert [by_index[index] for index in (3, 4, 10, 11)] == [0, 2, 2, 0]
    assert chosen.class_names == ()
    some, _ = sample(by="prediction", classes=[2], images_per_class=5)
    assert some.labels.tolist() == [2] * 5
    assert all(by_index[index] == 2 for index in some.indices.tolist())


@pytest.mark.parametrize("settings", [{"by": "prediction"}, {"only_correct": True}])
def test_prediction_stops_once_every_class_has_its_share(monkeypatch, settings):
    monkeypatch.setattr(sampling, "PREDICTION_BLOCK", 5)
    chosen, predicted = sample(images_per_class=2, **settings)
    assert np.bincount(chosen.labels).tolist() == [2, 2, 2]
    assert 6 <= len(predicted) < 25
    assert len(predicted) == len(set(predicted))
    _, predicted = sample(num_images=None, **settings)
    assert len(predicted) == 30


@pytest.mark.parametrize(("number", "images_per_class", "expected"), [(12, 3, [3, 1, 3]), (60, 18, [18, 17, 18])])
def test_only_a_class_that_stays_short_is_predicted_completely(monkeypatch, number, images_per_class, expected):
    monkeypatch.setattr(sampling, "PREDICTION_BLOCK", 5)
    # class 1 has one correct image in 4, or 17 in 20
    chosen, predicted = sample(number=number, images_per_class=images_per_class, only_correct=True)
    assert np.bincount(chosen.labels).tolist() == expected
    assert {index for index in range(number) if index % 3 == 1} <= set(predicted)
    assert len(predicted) < number


def test_the_sample_follows_the_seed():
    settings = {"by": "prediction", "num_images": 6}
    first, again, other = (sample(seed=seed, **settings)[0].indices.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_an_empty_sample_is_refused():
    with pytest.raises(DataError, match=r"split 'train' has no images of the classes in mine.classes; choose other"):
        sample(number=2, classes=[2])
    with pytest.raises(DataError, match=r"of the classes in mine.classes that the model classifies correctly; choose"):
        sample_for_mining(
            load_tiny_images(5).take(np.flatnonzero(load_tiny_images(5).indices == 4)),
            Sampling(classes=[1], only_correct=True),
            num_classes=3,
            predict=Model(),
            seed=0,
        )
