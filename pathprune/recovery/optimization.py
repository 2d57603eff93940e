"""Optimizer, learning rate schedule, weight average and mixup of a training, from timm."""

from __future__ import annotations

from typing import Any

from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from pathprune.recovery.config import TrainConfig
from pathprune.recovery.timm_factories import build_with_timm


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
    """Return timm's scheduler, to be stepped after every optimizer step, or None for a constant learning rate."""
    scheduler, _ = build_with_timm(
        "schedule",
        config.schedule,
        create_scheduler_v2,
        optimizer,
        sched=config.schedule,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.learning_rate / 100,
        min_lr=min(config.min_learning_rate, config.learning_rate),
        step_on_epochs=False,
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
