"""Batches of labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

Batches = Iterable[tuple[Tensor, Tensor]]
"""Re-iterable batches of `(images [B, C, H, W], labels int64 [B])`."""


def take_images(batches: Batches, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches up to the first `number` images; the last batch is cut."""
    left = number
    for images, labels in batches:
        yield images[:left], labels[:left]
        left -= len(images[:left])
        if left == 0:
            return
