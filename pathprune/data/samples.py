"""Random samples of a split, and checks of labels and of overlap between splits."""

# N images of a split, K classes among their labels

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pathprune.data.images import UNLABELLED, DataError, LabelledImages


def sample_balanced(
    images: LabelledImages, *, num_images: int | None = None, images_per_class: int | None = None, seed: int
) -> LabelledImages:
    """Return a random sample in random order, balanced over the classes as far as each class has enough images.

    Every prefix of the sample is as balanced as the sample. `num_images` limits the size of the sample,
    `images_per_class` the number of images of each class; None is no limit.
    """
    _check_limits(images, num_images=num_images, images_per_class=images_per_class)
    shuffled = np.random.default_rng(seed).permutation(len(images))
    rank_N = _rank_within_class(images.labels[shuffled])
    balanced = shuffled[np.argsort(rank_N, kind="stable")]  # the first image of every class, then the second, …
    if images_per_class is not None:
        balanced = balanced[: np.count_nonzero(rank_N < images_per_class)]
    return images.take(balanced[:num_images])


def sample_stratified(images: LabelledImages, *, num_images: int | None, seed: int) -> LabelledImages:
    """Return a random sample with the class proportions of the split, or all images in their order for None.

    Each class gets its exact share rounded down. The classes with the largest remainders get one image more.
    """
    _check_limits(images, num_images=num_images)
    if num_images is None or num_images >= len(images):
        return images
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(images))
    _, class_of_N, counts_K = np.unique(images.labels[shuffled], return_inverse=True, return_counts=True)
    quotas_K, remainders_K = np.divmod(num_images * counts_K, len(images))
    tie_breaker_K = rng.permutation(len(counts_K))
    largest_first = np.lexsort((tie_breaker_K, -remainders_K))
    quotas_K[largest_first[: num_images - quotas_K.sum()]] += 1
    rank_N = _rank_within_class(class_of_N)
    is_sampled_N = rank_N < quotas_K[class_of_N]
    return images.take(shuffled[is_sampled_N][np.argsort(rank_N[is_sampled_N], kind="stable")])


def _check_limits(images: LabelledImages, **limits: int | None) -> None:
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise DataError(f"{name} is {limit}; give a number of at least 1, or null for all {len(images)} images")


def _rank_within_class(labels_N: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return the position of each image among the images of its class."""
    rank_N = np.empty(len(labels_N), dtype=np.int64)
    by_class = np.argsort(labels_N, kind="stable")
    _, counts_K = np.unique(labels_N, return_counts=True)
    rank_N[by_class] = np.concatenate([np.arange(count) for count in counts_K]) if len(counts_K) else []
    return rank_N


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
