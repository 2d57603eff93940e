"""Random paths, as a baseline for located paths."""

# B images, L layers, k neurons of a layer on a path

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_random_paths(widths: Sequence[int], *, num_images: int, top_k: int = 1, generator: torch.Generator) -> Tensor:
    """Draw `top_k` distinct neurons of every layer for each image: int64 `[B, L, k]`."""
    layers = [torch.rand(num_images, width, generator=generator).argsort(dim=1)[:, :top_k] for width in widths]
    return torch.stack(layers, dim=1)
