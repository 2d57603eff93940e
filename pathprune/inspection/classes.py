"""Which classes share paths."""

# C classes, W neurons of a layer, L layers

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform
from torch import Tensor


def shared_neurons(counts: Sequence[Tensor], num_images: Tensor, *, size: int = 1) -> Tensor:
    """The share of path neurons that an image of one class and another image, of another, have in common: `[C, C]`.

    `counts` are, for every layer, the images of a class that have a neuron on their path, `[C, W]`; `size` is how many
    neurons of a layer are on a path. The mean over all pairs of different images and over layers, in [0, 1]; NaN where
    there are no such pairs: a class without images, or of one image with itself.
    """
    images_C = num_images.double()
    pairs_CC = images_C[:, None] * images_C - torch.diag(images_C)
    total_CC = torch.zeros_like(pairs_CC)
    for count_CW in counts:
        count_CW = count_CW.double()
        # of a class with itself, an image shares everything with itself: those pairs do not count
        total_CC += count_CW @ count_CW.T - torch.diag(count_CW.sum(1))
    return total_CC / pairs_CC.where(pairs_CC > 0, torch.nan) / (size * len(counts))


def class_order(shared_CC: Tensor) -> list[int]:
    """An order of the classes in which those that share much are neighbours; classes without images come last.

    Average linkage over 1 - what is shared, leaves in optimal order.
    """
    shared: NDArray[np.float64] = shared_CC.double().numpy()
    known = [index for index in range(len(shared)) if np.isfinite(np.delete(shared[index], index)).any()]
    rest = [index for index in range(len(shared)) if index not in known]
    if len(known) < 3:
        return known + rest
    distance = 1 - shared[np.ix_(known, known)]
    np.fill_diagonal(distance, 0)
    condensed = squareform((distance + distance.T) / 2, checks=False)
    leaves = leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))
    return [known[leaf] for leaf in leaves] + rest
