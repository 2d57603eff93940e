"""Which images of a split are used: samples spread over the classes, and images that must be kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pathprune.data.images import UNLABELLED, DataError, LabelledImages


def sample_balanced(
    images: LabelledImages, *, num_images: int | None = None, images_per_class: int | None = None, seed: int
) -> LabelledImages:
    """Sample at random: `num_images`, spread evenly over the classes as far as each has enough, or up to
    `images_per_class` of every class; None does not limit.
    """
    for name, limit in {"num_images": num_images, "images_per_class": images_per_class}.items():
        if limit is not None and limit < 1:
            raise DataError(f"{name} is {limit}; give a positive number, or null for all {len(images)}")
    if (num_images is None or num_images >= len(images)) and images_per_class is None:
        return images
    shuffled = np.random.default_rng(seed).permutation(len(images))
    labels = images.labels[shuffled]
    turn = np.empty(len(images), dtype=np.int64)  # the n-th image of its class goes in round n
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    in_turn = shuffled[np.argsort(turn, kind="stable")]
    if images_per_class is not None:
        in_turn = in_turn[: np.count_nonzero(turn < images_per_class)]
    return images.take(in_turn[:num_images])


def check_labels(images: LabelledImages, *, num_classes: int) -> None:
    """Refuse labels that the model's head cannot predict."""
    labels = images.labels
    wrong = np.flatnonzero((labels != UNLABELLED) & ((labels < 0) | (labels >= num_classes)))
    if len(wrong):
        raise DataError(
            f"split '{images.split}': label {images.labels[wrong[0]]} of image {images.indices[wrong[0]]} is out of "
            f"range: the model has {num_classes} classes (0 to {num_classes - 1}); check the data set or "
            "model.num_classes"
        )


def refuse_overlap(kept: Sequence[bytes], others: Mapping[str, Sequence[bytes]], *, held: str = "evaluate") -> None:
    """Refuse data in which an image held out to `held` is also mined or trained on …; compares hashes of content."""
    held_out = set(kept)
    for use, hashes in others.items():
        shared = sum(digest in held_out for digest in hashes)
        if shared:
            raise DataError(
                f"{shared} of the {len(hashes)} images used to {use} are also {held}d on; accuracy on them would not "
                "be honest: choose disjoint splits in data.splits"
            )
