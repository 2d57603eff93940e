"""Optimizer, learning rate schedule, weight average and mixup of a training, from timm."""

# B images of a batch, C channels, H × W pixels, K classes

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from pathprune.recovery.config import TrainConfig
from pathprune.recovery.timm_factories import build_with_timm


class MixedBatch(NamedTuple):
    """Mixed images `[B, C, H, W]` and class probabilities `[B, K]`."""

    images: Tensor
    targets: Tensor


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return the optimizer of the trainable parameters of `model`."""
    optimizer: Optimizer = build_with_timm(
        "optimizer",
        config.optimizer,
        create_optimizer_v2,
        model,
        opt=config.optimizer,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    return optimizer


def build_scheduler(optimizer: Optimizer, config: TrainConfig, *, batches_per_epoch: int) -> Any:
    """Return timm's scheduler, or None for a constant learning rate.

    Call `step_update` after every optimizer step and `step` after every epoch; each schedule ignores one of the two.
    """
    is_plateau = config.schedule == "plateau"
    with warnings.catch_warnings():
        # timm deprecates plateau since timm does not save its state; TrainingState does
        warnings.filterwarnings("ignore", "PlateauLRScheduler is deprecated", FutureWarning)
        scheduler, _ = build_with_timm(
            "schedule",
            config.schedule,
            create_scheduler_v2,
            optimizer,
            sched=config.schedule,
            num_epochs=config.epochs,
            # timm's defaults for the 300 epochs of its trainings, in proportion
            decay_epochs=0.3 * config.epochs if config.schedule == "step" else None,
            decay_milestones=[share * config.epochs for share in (0.3, 0.6, 0.9)],
            patience_epochs=config.epochs // 30,
            warmup_epochs=math.ceil(config.warmup_epochs) if is_plateau else config.warmup_epochs,
            warmup_lr=config.learning_rate / 100,
            min_lr=min(config.min_learning_rate, config.learning_rate),
            step_on_epochs=is_plateau,
            updates_per_epoch=-(-batches_per_epoch // config.accumulate_steps),
        )
    return scheduler


def build_average(model: nn.Module, config: TrainConfig) -> ModelEmaV3 | None:
    """Return an exponential moving average of the weights of `model`, or None if the config has no `ema_decay`."""
    return ModelEmaV3(model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None


def build_mixup(config: TrainConfig, *, num_classes: int) -> Any:
    """Return timm's mixup and cutmix of a batch, or None if both are off."""
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes)  # type: ignore[no-untyped-call]


def mix_images(mixup: Any, images_BCHW: Tensor, labels_B: Tensor) -> MixedBatch:
    """Mix every image of a batch with another one; a single image stays as it is. Changes the images in place."""
    number = len(images_BCHW)
    if number % 2:  # timm pairs the first image with the last: the first image of an odd batch mixes with a copy of it
        images_BCHW, labels_B = (torch.cat([part, part[-1:]]) for part in (images_BCHW, labels_B))
    mixed_BCHW, targets_BK = mixup(images_BCHW, labels_B)
    return MixedBatch(mixed_BCHW[:number], targets_BK[:number])
