"""Train a model on labelled images, on Accelerate: from scratch, or to recover accuracy after pruning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from pydantic import BaseModel, ConfigDict, Field
from timm.data import Mixup, create_transform
from timm.layers import PatchDropout
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pathprune.data import SKIPPED, LabelledImages, make_loader
from pathprune.files import written_whole
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
    compile: bool = Field(False, description="torch.compile the model while training")


def train(
    model: nn.Module,
    images: LabelledImages,
    *,
    config: TrainConfig,
    data_config: Mapping[str, Any],
    num_classes: int,
    accelerator: Accelerator | None = None,
    seed: int = 0,
    max_unreadable: float = 0.0,
    num_workers: int = 0,
    state_file: Path | None = None,
    validate: Callable[[nn.Module], float] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place; returns one record per epoch (loss, learning rate and, with `validate`, top-1).

    `accelerator` decides on device, processes and precision; to repeat an epoch's order it needs a seedable sampler, as
    the default one has. Images that cannot be read are skipped, up to the share `max_unreadable` of them.

    `state_file` is rewritten after every epoch; a later call that finds it goes on from there. Order, augmentation and
    dropout of an epoch depend on `seed` and the epoch alone: a resumed run repeats what an unbroken one does.

    Raises `ValueError` for a `patch_drop_rate` that the model has no part for, and `FloatingPointError` for a loss that
    is not finite.
    """
    if config.patch_drop_rate and not hasattr(model, "patch_drop"):
        raise ValueError(
            f"patch_drop_rate is {config.patch_drop_rate}, but {type(model).__name__} has no patch_drop; set it to 0"
        )
    accelerator = accelerator or Accelerator(
        gradient_accumulation_steps=config.accumulate_steps,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed),
    )
    loader = make_loader(
        images.with_transform(training_transform(data_config, config)),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=len(images) >= config.batch_size,
        num_workers=num_workers,
        seed=seed,
    )
    trainer = _Trainer(model, loader, config, accelerator, num_classes=num_classes, seed=seed)
    trainer.resume(state_file)
    for epoch in range(len(trainer.history), config.epochs):
        record, num_unreadable = trainer.run_epoch(epoch)
        images.check_unreadable(num_unreadable, max_unreadable)
        if validate is not None:
            record["top1"] = validate(trainer.result)
        trainer.history.append(record)
        log.info("epoch %d of %d: %s", epoch + 1, config.epochs, ", ".join(f"{k} {v:.4g}" for k, v in record.items()))
        if state_file is not None and trainer.accelerator.is_main_process:
            trainer.save(state_file)
    trainer.finish()
    return trainer.history


def training_transform(data_config: Mapping[str, Any], config: TrainConfig) -> Callable[[Any], Tensor]:
    """The training transform of timm, at the model's own input size and normalisation."""
    transform: Callable[[Any], Tensor] = _made(
        "augmentation",
        str(config.auto_augment),
        create_transform,
        **data_config,
        is_training=True,
        scale=config.crop_scale,
        hflip=config.horizontal_flip,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment,
        re_prob=config.random_erasing,
    )
    return transform


class _Trainer:
    """The state of a training: model, optimizer, schedule, moving average and what is done so far."""

    def __init__(
        self,
        model: nn.Module,
        loader: DataLoader[tuple[Tensor, Tensor]],
        config: TrainConfig,
        accelerator: Accelerator,
        *,
        num_classes: int,
        seed: int,
    ) -> None:
        self.model, self.config, self.accelerator, self.seed = model, config, accelerator, seed
        self.history: list[dict[str, float]] = []
        optimizer = _made(
            "optimizer",
            config.optimizer,
            create_optimizer_v2,
            model,
            opt=config.optimizer,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        prepared, self.optimizer, self.loader = accelerator.prepare(model, optimizer, loader)
        self.step_model: Any = torch.compile(prepared) if config.compile else prepared
        self.updates_per_epoch = -(-len(self.loader) // config.accumulate_steps)
        self.scheduler, _ = _made(
            "schedule",
            config.schedule,
            create_scheduler_v2,
            optimizer,
            sched=config.schedule,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            warmup_lr=config.learning_rate / 100,
            min_lr=config.min_learning_rate,
            step_on_epochs=False,
            updates_per_epoch=self.updates_per_epoch,
        )
        self.average = _WeightAverage(model, config.ema_decay) if config.ema_decay else None
        self.mixup: Any = None
        if config.mixup or config.cutmix:
            smoothing = config.label_smoothing
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=smoothing, num_classes=num_classes)  # type: ignore[no-untyped-call]
        self.loss = _SoftOrHardCrossEntropy(config.label_smoothing)

    @property
    def result(self) -> nn.Module:
        """The model to use: the average where there is one."""
        return self.average.model if self.average else self.model

    def run_epoch(self, epoch: int) -> tuple[dict[str, float], int]:
        """Train for one epoch; returns its record and how many images could not be read."""
        config, accelerator = self.config, self.accelerator
        set_seed(self.seed * 100_003 + epoch, device_specific=True)
        self.loader.set_epoch(epoch)
        self.step_model.train()
        _drop_patches(self.model, config.patch_drop_rate if epoch < config.epochs - config.all_patches_epochs else 0.0)
        total, seen, unreadable, update = 0.0, 0, 0, epoch * self.updates_per_epoch
        with image_progress(disable=not accelerator.is_main_process) as progress:
            size = len(self.loader) * config.batch_size * accelerator.num_processes
            task = progress.add_task(f"epoch {epoch + 1}/{config.epochs}", total=size, note="")
            for batch, labels in self.loader:
                images, targets = batch[labels != SKIPPED], labels[labels != SKIPPED]
                unreadable += len(labels) - len(images)
                if self.mixup is not None:
                    even = len(images) // 2 * 2  # timm's mixup pairs images
                    images, targets = self.mixup(images[:even], targets[:even])
                if len(images) == 0:
                    continue
                with accelerator.accumulate(self.step_model):
                    loss = self.loss(self.step_model(images).float(), targets)
                    if not torch.isfinite(loss):
                        raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch + 1}; lower learning_rate")
                    accelerator.backward(loss)
                    if accelerator.sync_gradients and config.clip_grad_norm is not None:
                        accelerator.clip_grad_norm_(self.step_model.parameters(), config.clip_grad_norm)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                if accelerator.sync_gradients:
                    update += 1
                    self.scheduler.step_update(update)
                    if self.average:
                        self.average.update(update)
                total, seen = total + loss.item() * len(images), seen + len(images)
                progress.update(task, advance=len(labels) * accelerator.num_processes, note=f"loss {total / seen:.3f}")
        return {"loss": total / max(seen, 1), "learning_rate": self.optimizer.param_groups[0]["lr"]}, unreadable

    def finish(self) -> None:
        """Leave the result in the model that was given, ready for use and free of Accelerate's autocast."""
        self.accelerator.unwrap_model(self.step_model, keep_fp32_wrapper=False)
        _drop_patches(self.model, 0.0)
        if self.average:
            self.model.load_state_dict(self.average.model.state_dict())
        self.model.eval()

    def save(self, file: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "history": self.history}
        if self.average:
            state["average"] = self.average.model.state_dict()
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as part:
            torch.save(state, part)

    def resume(self, file: Path | None) -> None:
        """Go on from what an earlier call left in `file`, if there is one."""
        if file is None or not file.exists():
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.model.load_state_dict(state["average"])
        self.history = list(state["history"])
        log.info("going on after %d epochs found in %s", len(self.history), file)


def _made(kind: str, name: str, factory: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What one of timm's factories makes; raises `ValueError` in one line where it does not know the name."""
    try:
        return factory(*arguments, **settings)
    except (ValueError, AssertionError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"timm cannot make the {kind} '{name}': {error or type(error).__name__}") from error


class _SoftOrHardCrossEntropy(nn.Module):
    """Cross entropy to mixed targets `[B, K]` or, smoothed, to labels `[B]`."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.soft: nn.Module = SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]
        self.hard = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = (self.soft if targets.ndim == 2 else self.hard)(logits, targets)
        return loss


def _drop_patches(model: Any, rate: float) -> None:
    """Set (in place) the share of patch tokens that `model` drops in training, where it has a part for that."""
    if hasattr(model, "patch_drop"):
        model.patch_drop = PatchDropout(rate, num_prefix_tokens=model.num_prefix_tokens) if rate else nn.Identity()


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
