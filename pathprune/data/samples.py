"""Samples of a split that are balanced over its classes, and checks of labels and of overlap between splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from pathprune.data.images import UNLABELLED, DataError, LabelledImages


def sample_balanced(
    images: LabelledImages, *, num_images: int | None = None, images_per_class: int | None = None, seed: int
) -> LabelledImages:
    """Return a random sample, balanced over the classes as far as each class has enough images.

    `num_images` limits the size of the sample, `images_per_class` the number of images of each class; None is no limit.
    """
    for name, limit in {"num_images": num_images, "images_per_class": images_per_class}.items():
        if limit is not None and limit < 1:
            raise DataError(f"{name} is {limit}; give a number of at least 1, or null for all {len(images)} images")
    if (num_images is None or num_images >= len(images)) and images_per_class is None:
        return images
    shuffled = np.random.default_rng(seed).permutation(len(images))
    labels = images.labels[shuffled]
    rank = np.empty(len(images), dtype=np.int64)  # position of an image among those of its class
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    balanced = shuffled[np.argsort(rank, kind="stable")]  # the first image of every class, then the second, …
    if images_per_class is not None:
        balanced = balanced[: np.count_nonzero(rank < images_per_class)]
    return images.take(balanced[:num_images])


def check_labels(images: LabelledImages, *, num_classes: int) -> None:
    """Raise `DataError` for a label that is not a class of the model."""
    labels = images.labels
    wrong = np.flatnonzero((labels != UNLABELLED) & ((labels < 0) | (labels >= num_classes)))
    if len(wrong):
        raise DataError(
            f"split '{images.split}': label {images.labels[wrong[0]]} of image {images.indices[wrong[0]]} is out of "
            f"range: the model has {num_classes} classes (0 to {num_classes - 1}); check the data set or "
            "model.num_classes"
        )


def refuse_overlap(
    held_out: Sequence[bytes],
    others: Mapping[str, Sequence[bytes]],
    *,
    purpose: Literal["evaluation", "validation"] = "evaluation",
) -> None:
    """Raise `DataError` if a held-out image is also used for something else.

    Images are given as content hashes: those held out for `purpose`, and the others by use (`mine`, `train`, …).
    """
    held_out_hashes = set(held_out)
    for use, hashes in others.items():
        shared = sum(digest in held_out_hashes for digest in hashes)
        if shared:
            raise DataError(
                f"{shared} of the {len(hashes)} images used to {use} are also {purpose} images, which would bias the "
                "accuracy measured on them; choose disjoint splits in data.splits"
            )
