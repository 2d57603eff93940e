"""Train a model on labelled images, on Accelerate: from scratch, or to recover accuracy after pruning."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import timm.data
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pydantic import BaseModel, ConfigDict, Field
from timm.layers import PatchDropout
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from pathprune.data import SKIPPED, LabelledImages, make_loader
from pathprune.progress import image_progress

log = logging.getLogger(__name__)


class TrainConfig(BaseModel):
    """How a model is trained; optimizers, schedules and augmentations are timm's, by timm's names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(10, ge=1, description="passes over the training images")
    batch_size: int = Field(128, ge=1, description="images per step and process")
    optimizer: str = Field("adamw", description="any name of timm.optim.create_optimizer_v2")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="not applied to biases and norms")
    schedule: str = Field("cosine", description="any name of timm.scheduler.create_scheduler_v2")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up")
    min_learning_rate: float = Field(1e-6, ge=0, description="learning rate at the end of the schedule")
    clip_grad_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null: no clipping")
    accumulate_steps: int = Field(1, ge=1, description="batches per optimizer step")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    mixup: float = Field(0.0, ge=0, description="mixup alpha; 0: off")
    cutmix: float = Field(0.0, ge=0, description="cutmix alpha; 0: off")
    crop_scale: tuple[float, float] = Field((0.6, 1.0), description="area range of random resized crops")
    horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability of a flip")
    color_jitter: float = Field(0.0, ge=0, description="strength of colour jitter")
    auto_augment: str | None = Field(None, description="timm policy such as rand-m9-mstd0.5; null: none")
    random_erasing: float = Field(0.0, ge=0, le=1, description="probability of random erasing")
    patch_drop_rate: float = Field(0.0, ge=0, lt=1, description="share of patch tokens dropped while training")
    all_patches_epochs: int = Field(0, ge=0, description="last epochs, trained without dropping patches")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="keep an exponential moving average of the weights")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Accelerate's mixed precision")
    compile: bool = Field(False, description="torch.compile the model while training")
    num_workers: int = Field(0, ge=0, description="processes that decode images")
    seed: int = Field(0, description="seed of the order, augmentations and dropout")


def train(
    model: nn.Module,
    images: LabelledImages,
    *,
    config: TrainConfig,
    data_config: Mapping[str, Any],
    num_classes: int,
    state_file: Path | None = None,
    validate: Callable[[nn.Module], float] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place; returns one record per epoch (loss, learning rate, validation accuracy).

    `state_file` is rewritten after every epoch; a later call that finds it goes on from there. Order, augmentation and
    dropout of an epoch depend on `seed` and the epoch alone, so that a resumed run repeats what an unbroken one does.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.accumulate_steps
    )
    loader = make_loader(
        images.with_transform(training_transform(data_config, config)),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=len(images) >= config.batch_size,
        num_workers=config.num_workers,
        seed=config.seed,
    )
    optimizer = create_optimizer_v2(
        model, opt=config.optimizer, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    scheduler = _scheduler(optimizer, config, updates_per_epoch=-(-len(loader) // config.accumulate_steps))
    average = _WeightAverage(model, config.ema_decay) if config.ema_decay else None
    history = _resume(state_file, model, optimizer, average)
    step_model = torch.compile(prepared) if config.compile else prepared
    prepared.train()
    for epoch in range(len(history), config.epochs):
        set_seed(config.seed * 100_003 + epoch, device_specific=True)
        _drop_patches(model, config.patch_drop_rate if epoch < config.epochs - config.all_patches_epochs else 0.0)
        loader.set_epoch(epoch)
        record = _train_epoch(
            step_model, loader, optimizer, scheduler, accelerator, config, epoch, num_classes, average, len(images)
        )
        if validate is not None:
            record["top1"] = validate(average.model if average else model)
        history.append(record)
        log.info("epoch %d of %d: %s", epoch + 1, config.epochs, ", ".join(f"{k} {v:.4g}" for k, v in record.items()))
        if accelerator.is_main_process and state_file is not None:
            _save_state(state_file, model, optimizer, average, history)
    _drop_patches(model, 0.0)
    if average:
        model.load_state_dict(average.model.state_dict())
    accelerator.free_memory()
    model.eval()
    return history


def training_transform(data_config: Mapping[str, Any], config: TrainConfig) -> Callable[[Any], Tensor]:
    """Timm's training transform at the model's own input size and normalisation."""
    return timm.data.create_transform(  # type: ignore[no-any-return]
        **data_config,
        is_training=True,
        scale=config.crop_scale,
        hflip=config.horizontal_flip,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment,
        re_prob=config.random_erasing,
    )


def _scheduler(optimizer: Any, config: TrainConfig, *, updates_per_epoch: int) -> Any:
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.schedule,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.learning_rate / 100,
        min_lr=config.min_learning_rate,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler


def _train_epoch(
    model: nn.Module,
    loader: Any,
    optimizer: Any,
    scheduler: Any,
    accelerator: Accelerator,
    config: TrainConfig,
    epoch: int,
    num_classes: int,
    average: _WeightAverage | None,
    num_images: int,
) -> dict[str, float]:
    mix = None
    if config.mixup or config.cutmix:
        mix = timm.data.Mixup(
            config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes
        )
    loss_of = SoftTargetCrossEntropy() if mix else nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    updates_per_epoch = -(-len(loader) // config.accumulate_steps)
    total, seen, update = 0.0, 0, epoch * updates_per_epoch
    with image_progress(disable=not accelerator.is_main_process) as progress:
        task = progress.add_task(f"epoch {epoch + 1}/{config.epochs}", total=num_images, note="")
        for images, labels in loader:
            readable = labels != SKIPPED
            images, labels = images[readable], labels[readable]
            if mix is not None and len(images) % 2 == 0:
                images, labels = mix(images, labels)
            elif mix is not None:  # timm's mixup pairs images: an odd batch goes in unmixed
                labels = nn.functional.one_hot(labels, num_classes).to(images.dtype)
            with accelerator.accumulate(model):
                loss = loss_of(model(images).float(), labels)
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch + 1}; lower learning_rate")
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    if config.clip_grad_norm is not None:
                        accelerator.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
                    update += 1
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                scheduler.step_update(update)
                if average is not None:
                    average.update(update)
            total, seen = total + loss.item() * len(images), seen + len(images)
            progress.update(task, advance=len(images) * accelerator.num_processes, note=f"loss {total / seen:.3f}")
    return {"loss": total / max(seen, 1), "learning_rate": optimizer.param_groups[0]["lr"]}


def _drop_patches(model: nn.Module, rate: float) -> None:
    """Set (in place) the share of patch tokens that `model` drops in training."""
    if not hasattr(model, "patch_drop"):
        if rate:
            raise ValueError(f"patch_drop_rate is {rate}, but {type(model).__name__} has no patch_drop; set it to 0")
        return
    model.patch_drop = PatchDropout(rate, num_prefix_tokens=int(model.num_prefix_tokens)) if rate else nn.Identity()


class _WeightAverage:
    """Exponential moving average of a model's weights, with a decay that warms up."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.source, self.decay = model, decay
        self.model = deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        for mine, theirs in zip(self.model.state_dict().values(), self.source.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)


def _save_state(
    file: Path, model: nn.Module, optimizer: Any, average: _WeightAverage | None, history: list[dict[str, float]]
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    if average:
        state["average"] = average.model.state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, file)


def _resume(
    file: Path | None, model: nn.Module, optimizer: Any, average: _WeightAverage | None
) -> list[dict[str, float]]:
    """Load (in place) what an earlier call left in `file`; returns the epochs done, none where there is no file."""
    if file is None or not file.exists():
        return []
    state = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average:
        average.model.load_state_dict(state["average"])
    log.info("going on after %d epochs found in %s", len(state["history"]), file)
    return list(state["history"])
