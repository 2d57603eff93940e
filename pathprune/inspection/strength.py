"""Paths to compare a located one with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def random_paths(widths: Sequence[int], *, num_images: int, size: int = 1, generator: torch.Generator) -> Tensor:
    """`size` different neurons of every layer, drawn for each image: int64 `[B, L, size]`."""
    layers = [torch.rand(num_images, width, generator=generator).argsort(dim=1)[:, :size] for width in widths]
    return torch.stack(layers, dim=1)
