"""Training images whose order and augmentation follow from the seed, the epoch and the item alone.

So a training that goes on in the middle of an epoch sees what an unbroken one sees, whatever was drawn before, and
whichever worker process decodes an image.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data import Dataset as TorchDataset

from pathprune.data import LabelledImages
from pathprune.recovery.config import TrainConfig
from pathprune.recovery.timm_made import made


def seed_of(*place: int) -> int:
    """A seed for one place of a training, such as (seed, epoch, step): well mixed, below 2³²."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def training_transform(data_config: Mapping[str, Any], config: TrainConfig) -> Callable[[Any], Tensor]:
    """The training transform of timm, at the model's own input size and normalisation."""
    transform: Callable[[Any], Tensor] = made(
        "augmentation",
        str(config.auto_augment),
        create_transform,
        **data_config,
        is_training=True,
        scale=config.crop_scale,
        ratio=config.crop_ratio,
        hflip=config.horizontal_flip,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment,
        re_prob=config.random_erasing,
    )
    return transform


@dataclass(frozen=True)
class _SeededImages(TorchDataset[tuple[Tensor, int]]):
    """The images of one epoch, each augmented from a seed of its own; leaves the random generators moved."""

    images: LabelledImages
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        seed = seed_of(self.seed, self.epoch, 0, item)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # the CPU's: augmentation happens there
        return self.images[item]


@dataclass(frozen=True)
class TrainingImages:
    """Epochs of batches for training."""

    images: LabelledImages  # with the training transform
    batch_size: int  # per process
    seed: int
    num_workers: int = 0

    def batches_per_epoch(self, num_processes: int) -> int:
        """Batches that each process sees; a last one that is not full is left out, unless it is the only one."""
        return max(1, len(self.images) // (self.batch_size * num_processes))

    def epoch(self, epoch: int, accelerator: Accelerator, *, skip: int = 0) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of an epoch, those of this process, on its device, without the first `skip`."""
        world = self.batch_size * accelerator.num_processes
        order = torch.randperm(
            len(self.images), generator=torch.Generator().manual_seed(seed_of(self.seed, epoch, 1))
        ).tolist()
        remaining = order[skip * world : self.batches_per_epoch(accelerator.num_processes) * world]
        loader: DataLoader[Any] = DataLoader(
            _SeededImages(self.images, self.seed, epoch),
            batch_sampler=BatchSampler(remaining, self.batch_size, drop_last=False),
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(0),  # the workers' own seeds, which each item overwrites
            pin_memory=torch.cuda.is_available(),
        )
        return accelerator.prepare_data_loader(loader)  # type: ignore[no-any-return]
