"""Overlap of the paths of different classes."""

# C classes, W neurons of a layer, L layers

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform
from torch import Tensor


def measure_overlap(counts: Sequence[Tensor], num_images: Tensor, *, top_k: int = 1) -> Tensor:
    """Return the share of path neurons that two different images of two classes have in common: `[C, C]`, in [0, 1].

    - counts: for every layer, the number of images of a class with the neuron on their path, `[C, W_l]`.
    - num_images: the number of images of each class, `[C]`.
    - top_k: the number of neurons of a layer on a path.

    The share is the mean over layers and over all pairs of different images. The share is NaN if there is no pair: for
    a class without images, and for a class of one image against itself.
    """
    images_C = num_images.double()
    pairs_CC = images_C[:, None] * images_C - torch.diag(images_C)
    total_CC = torch.zeros_like(pairs_CC)
    for count_CW in counts:
        count_CW = count_CW.double()
        # within a class, leave out the pairs of an image with itself, which share every neuron
        total_CC += count_CW @ count_CW.T - torch.diag(count_CW.sum(1))
    return total_CC / pairs_CC.where(pairs_CC > 0, torch.nan) / (top_k * len(counts))


def order_classes(overlap_CC: Tensor) -> list[int]:
    """Return an order of the classes that places classes of large overlap side by side.

    The order is that of the leaves of average linkage over 1 - overlap, in optimal leaf order. Classes without any
    overlap to another class (all NaN) come last.
    """
    overlap: NDArray[np.float64] = overlap_CC.double().numpy()
    known = [index for index in range(len(overlap)) if np.isfinite(np.delete(overlap[index], index)).any()]
    unknown = [index for index in range(len(overlap)) if index not in known]
    if len(known) < 3:
        return known + unknown
    distance = 1 - overlap[np.ix_(known, known)]
    np.fill_diagonal(distance, 0)
    condensed = squareform((distance + distance.T) / 2, checks=False)
    leaves = leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))
    return [known[leaf] for leaf in leaves] + unknown
