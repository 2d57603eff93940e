"""Choice of the mined images: classes, number per class, and labels or predictions to balance by."""

# N images of a split

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pathprune.data import SKIPPED, DataError, LabelledImages, sample_balanced
from pathprune.mining.choices import ClassSource

PREDICTION_BLOCK = 1024  # images predicted before the next check that every class has its share

Predict = Callable[[LabelledImages], NDArray[np.int64]]
"""Images -> predicted class of each image, int64 `[N]`; `SKIPPED` for an unreadable image."""


@dataclass(frozen=True)
class Sampling:
    """Number and classes of the images to mine.

    - num_images: total number, spread evenly over the classes as far as each has enough images. None: no limit.
    - images_per_class: the most images of each class. None: no limit.
    - classes: class numbers to choose from. None: all classes.
    - by: the class of an image, for sampling: its label or the model's prediction.
    - only_correct: use only images that the model classifies correctly.
    """

    num_images: int | None = None
    images_per_class: int | None = None
    classes: Sequence[int] | None = None
    by: ClassSource = "label"
    only_correct: bool = False

    @property
    def needs_predictions(self) -> bool:
        """True if the choice depends on the model."""
        return self.by == "prediction" or self.only_correct


def sample_for_mining(
    images: LabelledImages, sampling: Sampling, *, num_classes: int, predict: Predict, seed: int
) -> LabelledImages:
    """Return the images to mine, labelled with the class that each image counts for.

    If the choice needs predictions, the model predicts images in random order until every class has its share. Classes
    that stay short are predicted completely. Raises `DataError` if no image is left.
    """
    pool = images
    if sampling.classes is not None and sampling.by == "label":
        pool = images.take(np.flatnonzero(np.isin(images.labels, sampling.classes)))
    if sampling.needs_predictions and len(pool):
        pool = _select_by_prediction(pool, sampling, num_classes=num_classes, predict=predict, seed=seed)
    if not len(pool):
        classes = " of the classes in mine.classes" if sampling.classes is not None else ""
        correct = " that the model classifies correctly" if sampling.only_correct else ""
        raise DataError(
            f"split '{images.split}' has no images{classes}{correct}; choose other classes or another mining split"
        )
    if sampling.num_images is None and sampling.images_per_class is None:
        return pool  # in the split's order, which reads fastest; mining does not depend on the order
    return sample_balanced(pool, num_images=sampling.num_images, images_per_class=sampling.images_per_class, seed=seed)


def _select_by_prediction(
    pool: LabelledImages, sampling: Sampling, *, num_classes: int, predict: Predict, seed: int
) -> LabelledImages:
    """Return readable images of the sampled classes, at least a share per class if `pool` has as many."""
    classes = np.arange(num_classes) if sampling.classes is None else np.asarray(sampling.classes)
    share = _class_share(sampling, len(classes))
    kept_items, kept_classes = [], []
    num_kept = np.zeros(num_classes, dtype=np.int64)
    remaining = np.random.default_rng(seed).permutation(len(pool))
    while len(remaining):
        block, remaining = remaining[:PREDICTION_BLOCK], remaining[PREDICTION_BLOCK:]
        predictions, labels = predict(pool.take(block)), pool.labels[block]
        block_classes = labels if sampling.by == "label" else predictions
        is_kept = (predictions != SKIPPED) & np.isin(block_classes, classes)
        if sampling.only_correct:
            is_kept &= predictions == labels
        kept_items.append(block[is_kept])
        kept_classes.append(block_classes[is_kept])
        num_kept += np.bincount(block_classes[is_kept], minlength=num_classes)
        if (num_kept[classes] >= share).all():
            break
        if sampling.by == "label":  # classes that have their share need no more predictions
            remaining = remaining[num_kept[pool.labels[remaining]] < share]
    selected = pool.take(np.concatenate(kept_items))
    if sampling.by == "label":
        return selected
    # the model numbers the predicted classes; the split's class names may be in another order
    return replace(selected, labels=np.concatenate(kept_classes), class_names=())


def _class_share(sampling: Sampling, num_classes: int) -> float:
    """Return the number of images per class that is enough."""
    if sampling.images_per_class is not None:
        return sampling.images_per_class
    return math.inf if sampling.num_images is None else math.ceil(sampling.num_images / num_classes)
