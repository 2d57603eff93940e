"""Which images of a split are mined: of the classes asked for, balanced, by label or by what the model predicts."""

# N images of a split

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pathprune.data import SKIPPED, DataError, LabelledImages, sample_balanced

PREDICTED_AT_ONCE = 1024  # images; predicting stops after the first so many by which every class has its share

Predict = Callable[[LabelledImages], NDArray[np.int64]]
"""Images -> the class that the model predicts for each, int64 `[N]`; `SKIPPED` for one that cannot be read."""


@dataclass(frozen=True)
class Sampling:
    """How many images are wanted, and of which classes.

    - num_images: spread evenly over the classes as far as each has enough; images_per_class: up to so many of every
      class. None does not limit.
    - classes: class numbers; None for all.
    - by: what an image's class is, its label or the model's prediction.
    - only_correct: only images whose label the model predicts.
    """

    num_images: int | None = None
    images_per_class: int | None = None
    classes: Sequence[int] | None = None
    by: Literal["label", "prediction"] = "label"
    only_correct: bool = False

    @property
    def predicts(self) -> bool:
        """Whether the choice depends on the model."""
        return self.by == "prediction" or self.only_correct


def sample_for_mining(
    images: LabelledImages, sampling: Sampling, *, num_classes: int, predict: Predict, seed: int
) -> LabelledImages:
    """The images to mine, labelled with the class that each counts for.

    Where the choice depends on predictions, images are predicted in a random order until every class has its share:
    all of a split in which some class is short of it. Raises `DataError` where nothing is left.
    """
    pool = images
    if sampling.classes is not None and sampling.by == "label":
        pool = images.take(np.flatnonzero(np.isin(images.labels, sampling.classes)))
    if sampling.predicts and len(pool):
        pool = _predicted(pool, sampling, num_classes=num_classes, predict=predict, seed=seed)
    if not len(pool):
        what = " that the model gets right" if sampling.only_correct else ""
        where = " of the classes in mine.classes" if sampling.classes is not None else ""
        raise DataError(f"split '{images.split}' has no images{where}{what}; none can be mined")
    return sample_balanced(pool, num_images=sampling.num_images, images_per_class=sampling.images_per_class, seed=seed)


def _predicted(
    pool: LabelledImages, sampling: Sampling, *, num_classes: int, predict: Predict, seed: int
) -> LabelledImages:
    """Of `pool` the readable images of the classes asked for, as far as they had to be looked at."""
    wanted = np.arange(num_classes) if sampling.classes is None else np.asarray(sampling.classes)
    share = _share(sampling, len(wanted))
    items, classes, found = [], [], np.zeros(num_classes, dtype=np.int64)
    remaining = np.random.default_rng(seed).permutation(len(pool))
    while len(remaining):
        now, remaining = remaining[:PREDICTED_AT_ONCE], remaining[PREDICTED_AT_ONCE:]
        predictions, labels = predict(pool.take(now)), pool.labels[now]
        classes_now = labels if sampling.by == "label" else predictions
        kept = (predictions != SKIPPED) & np.isin(classes_now, wanted)
        if sampling.only_correct:
            kept &= predictions == labels
        items.append(now[kept])
        classes.append(classes_now[kept])
        found += np.bincount(classes_now[kept], minlength=num_classes)
        if (found[wanted] >= share).all():
            break
        if sampling.by == "label":  # what is there in plenty need not be predicted
            remaining = remaining[found[pool.labels[remaining]] < share]
    chosen = pool.take(np.concatenate(items))
    if sampling.by == "label":
        return chosen
    return replace(chosen, labels=np.concatenate(classes), class_names=())  # numbered as the model's are


def _share(sampling: Sampling, num_classes: int) -> float:
    """Images of a class that are enough."""
    if sampling.images_per_class is not None:
        return sampling.images_per_class
    return math.inf if sampling.num_images is None else math.ceil(sampling.num_images / num_classes)
