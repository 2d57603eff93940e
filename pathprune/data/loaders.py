"""Data loaders of labelled images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from pathprune.data.images import LabelledImages


def make_loader(
    images: LabelledImages,
    *,
    batch_size: int,
    shuffle: bool = False,
    drop_last: bool = False,
    num_workers: int = 0,
    seed: int = 0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return re-iterable batches of `(images [B, C, H, W], labels int64 [B])`."""
    return DataLoader(
        images,  # type: ignore[arg-type]  # torch declares a batch to have the item's type
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.cuda.is_available(),
    )


def load_batches(
    images: LabelledImages, batches: Sequence[NDArray[np.int64]], num_workers: int = 0
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return re-iterable batches with the given items each, in the given order."""
    return DataLoader(
        images,  # type: ignore[arg-type]  # as in make_loader
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
        pin_memory=torch.cuda.is_available(),
    )
