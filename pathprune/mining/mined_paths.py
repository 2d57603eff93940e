"""Paths of a batch of images, with the dense attributions that the paths were chosen by."""

# B images, L layers, W neurons of a layer, k neurons chosen in a layer

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MinedPaths:
    """Paths of a batch and the dense attributions that the paths were chosen by, on the model's device.

    `scores`, `own` and `mass` are `[B, L, W]`, or a list of `[B, W_l]` where layers differ in width. The method decides
    the meaning of `scores` and `own`. Below, `a` are activations, `G` their integrated gradients, and sums run over the
    clamped tokens:

    - `jas`: the layer's joint attribution score; Σ a·G
    - `activation`: Σ a; Σ a
    - `influence-pattern`: Σ G, with G averaged over scaled inputs; Σ a·G
    """

    paths: Tensor  # int64 [B, L, k], best neuron first
    scores: Tensor | list[Tensor]  # signed; the paths are sorted by score
    own: Tensor | list[Tensor]  # signed; each neuron's own term of the score
    mass: Tensor | list[Tensor]  # |own|, normalised to sum 1 over each layer of each image
    jas: Tensor  # [B], joint attribution score of the path of best neurons
    targets: Tensor  # int64 [B], explained classes; -1 without a classifier
    predictions: Tensor  # int64 [B]; -1 without a classifier


def split_layers(dense: Tensor | list[Tensor]) -> list[Tensor]:
    """Return `MinedPaths.scores`, `.own` or `.mass` as a list of `[B, W_l]`, one tensor per layer."""
    return list(dense.unbind(1)) if isinstance(dense, Tensor) else dense


def normalize_rows(x_BW: Tensor) -> Tensor:
    """Return |x| with every row scaled to sum 1: `[B, W]` -> `[B, W]`. A row of zeros stays zero."""
    magnitude_BW = x_BW.abs()
    total_B1 = magnitude_BW.sum(1, keepdim=True)
    return magnitude_BW / total_B1.where(total_B1 > 0, 1)
