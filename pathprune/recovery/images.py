"""Training images whose order and augmentation depend on the seed, the epoch and the item alone.

A training that resumes in the middle of an epoch therefore sees the same batches as an uninterrupted one, whatever used
the random generators before and whichever worker process decodes an image.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from timm.data import create_transform
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data import Dataset as TorchDataset

from pathprune.data import LabelledImages, evaluation_transform
from pathprune.recovery.config import TrainConfig
from pathprune.recovery.timm_factories import build_with_timm


def derive_seed(*position: int) -> int:
    """Return a seed below 2³² for a position in a training, such as (seed, epoch, step)."""
    return int(np.random.SeedSequence(position).generate_state(1)[0])


def training_transform(data_config: Mapping[str, Any], config: TrainConfig) -> Callable[[Any], Tensor]:
    """Return timm's training transform with the config's augmentation: image -> normalised `[C, H, W]`.

    With `crop_scale` [1, 1], images are cropped as in the evaluation unless `crop_ratio` excludes 1.
    """
    transform: Any = build_with_timm(
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
    keeps_evaluation_crop = config.crop_scale == (1.0, 1.0) and config.crop_ratio[0] <= 1 <= config.crop_ratio[1]
    if keeps_evaluation_crop and not _evaluates_whole_images(data_config):
        assert isinstance(transform.transforms[0], RandomResizedCropAndInterpolation), "timm crops first"
        evaluation: Any = evaluation_transform(data_config)
        transform.transforms[:1] = takewhile(lambda step: not isinstance(step, MaybeToTensor), evaluation.transforms)
    return cast(Callable[[Any], Tensor], transform)


def _evaluates_whole_images(data_config: Mapping[str, Any]) -> bool:
    """Return True if the evaluation sees the largest central crop, as timm's random crop of scale 1 does."""
    return (data_config["crop_pct"], data_config.get("crop_mode", "center")) == (1, "center")


@dataclass(frozen=True)
class _SeededImages(TorchDataset[tuple[Tensor, int]]):
    """Images of one epoch; reading an item seeds the global random generators for its augmentation."""

    images: LabelledImages
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        seed = derive_seed(self.seed, self.epoch, 0, item)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # the CPU's generator: augmentation runs on the CPU
        return self.images[item]


@dataclass(frozen=True)
class TrainingImages:
    """Training images in shuffled batches, epoch by epoch."""

    images: LabelledImages  # with the training transform
    batch_size: int  # per process
    seed: int
    num_workers: int = 0

    def batches_per_epoch(self, num_processes: int) -> int:
        """Return the number of batches per process. An incomplete last batch is dropped unless it is the only one."""
        return max(1, len(self.images) // (self.batch_size * num_processes))

    def epoch(self, epoch: int, accelerator: Accelerator, *, skip: int = 0) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return this process's batches of an epoch on its device, without the first `skip` batches."""
        world = self.batch_size * accelerator.num_processes
        order = torch.randperm(
            len(self.images), generator=torch.Generator().manual_seed(derive_seed(self.seed, epoch, 1))
        ).tolist()
        remaining = order[skip * world : self.batches_per_epoch(accelerator.num_processes) * world]
        loader: DataLoader[Any] = DataLoader(
            _SeededImages(self.images, self.seed, epoch),
            batch_sampler=BatchSampler(remaining, self.batch_size, drop_last=False),
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(0),  # seeds the workers; every item sets its own seed again
            pin_memory=torch.cuda.is_available(),
        )
        return accelerator.prepare_data_loader(loader)  # type: ignore[no-any-return]
