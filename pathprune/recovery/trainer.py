"""Train a model on labelled images, on Accelerate: from scratch, or to recover accuracy after pruning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import Mixup
from timm.layers import PatchDropout
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from pathprune.data import SKIPPED, LabelledImages
from pathprune.files import write_atomically
from pathprune.progress import image_progress
from pathprune.recovery.answering import Answering
from pathprune.recovery.best import Best
from pathprune.recovery.config import TrainConfig
from pathprune.recovery.images import TrainingImages, seed_of, training_transform
from pathprune.recovery.losses import Objective
from pathprune.recovery.timm_made import made
from pathprune.recovery.untrained import held, stem_parameters, unused_parameters

log = logging.getLogger(__name__)

Record = dict[str, float]


def train(
    model: nn.Module,
    images: LabelledImages,
    *,
    config: TrainConfig,
    data_config: Mapping[str, Any],
    num_classes: int,
    teacher: nn.Module | None = None,
    accelerator: Accelerator | None = None,
    seed: int = 0,
    max_unreadable: float = 0.0,
    num_workers: int = 0,
    state_file: Path | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    description: str = "training",
) -> list[Record]:
    """Train `model` in place; returns a record per epoch and validation: epoch, updates, loss, learning rate, top-1.

    `teacher` is what `config.distill` learns from; it takes the same normalised images and is put in eval mode.
    `validate` tells a model's top-1 on images that are not trained on; `model` ends with the best weights that it saw.
    `accelerator` decides on device, processes and precision, and logs to its trackers. Images that cannot be read are
    skipped, up to the share `max_unreadable` of them.

    `state_file` is rewritten every `config.save_steps` optimizer steps and after every epoch; a later call that finds
    it goes on from there. Order, augmentation and dropout follow from `seed` and the step alone: a resumed run repeats
    what an unbroken one does.

    Raises `ValueError` for a config that the model or the arguments do not allow, and `FloatingPointError` for a loss
    that is not finite.
    """
    _check(model, config, teacher=teacher, validated=validate is not None)
    size = data_config["input_size"]
    untrained = unused_parameters(model, input_size=size, logits=config.learns_logits, states=config.learns_states)
    if config.freeze_stem:
        untrained += stem_parameters(model, input_size=size)
    with held(untrained):
        trainer = _Trainer(
            model,
            TrainingImages(
                images.with_transform(training_transform(data_config, config)), config.batch_size, seed, num_workers
            ),
            config,
            accelerator or Accelerator(),
            num_classes=num_classes,
            teacher=teacher,
            max_unreadable=max_unreadable,
            state_file=state_file,
            validate=validate,
            description=description,
        )
        trainer.resume()
        trainer.run()
        trainer.finish()
    return trainer.history


def _check(model: nn.Module, config: TrainConfig, *, teacher: nn.Module | None, validated: bool) -> None:
    if config.patch_drop_rate and not hasattr(model, "patch_drop"):
        raise ValueError(
            f"patch_drop_rate is {config.patch_drop_rate}, but {type(model).__name__} has no patch_drop; set it to 0"
        )
    if config.distill is not None and teacher is None:
        raise ValueError("distill needs a teacher; name one in distill.teacher")
    if not validated and (config.patience or config.validate_steps):
        name = "patience" if config.patience else "validate_steps"
        raise ValueError(f"{name} is {getattr(config, name)}, but there is nothing to validate on; name a split for it")


class _Trainer:
    """The state of a training: model, optimizer, schedule, moving average and what is done so far."""

    def __init__(
        self,
        model: nn.Module,
        images: TrainingImages,
        config: TrainConfig,
        accelerator: Accelerator,
        *,
        num_classes: int,
        teacher: nn.Module | None,
        max_unreadable: float,
        state_file: Path | None,
        validate: Callable[[nn.Module], float] | None,
        description: str,
    ) -> None:
        self.model, self.images, self.config, self.accelerator = model, images, config, accelerator
        self.max_unreadable, self.state_file, self.validate = max_unreadable, state_file, validate
        self.description = description
        self.history: list[Record] = []
        self.best = Best(config.patience)
        self.epoch = self.batch = self.updates = self.unreadable = 0  # batches of this epoch, updates of all
        self.loss_sum, self.seen = 0.0, 0  # since the last record
        self.batches_per_epoch = images.batches_per_epoch(accelerator.num_processes)
        self.average = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        optimizer = made(
            "optimizer",
            config.optimizer,
            create_optimizer_v2,
            model,
            opt=config.optimizer,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
        )
        if accelerator.scaler:  # starts afresh, whatever was trained before
            accelerator.scaler.load_state_dict(type(accelerator.scaler)(accelerator.device.type).state_dict())
        accelerator.gradient_accumulation_steps = config.accumulate_steps
        student, self.optimizer = accelerator.prepare(
            Answering(model, states=config.learns_states, checkpointing=config.grad_checkpointing), optimizer
        )
        self.student: Any = torch.compile(student) if config.compile else student
        self.teacher: Any = None
        if config.distill is not None and teacher is not None:
            answering = Answering(teacher, states=config.learns_states).eval()
            self.teacher = torch.compile(answering) if config.compile else answering
        self.scheduler, _ = made(
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
            updates_per_epoch=-(-self.batches_per_epoch // config.accumulate_steps),
        )
        self.mixup: Any = None
        if config.mixup or config.cutmix:
            smoothing = config.label_smoothing
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=smoothing, num_classes=num_classes)  # type: ignore[no-untyped-call]
        self.objective = Objective(config)

    @property
    def result(self) -> nn.Module:
        """The model to use: the average where there is one."""
        return self.average.module if self.average else self.model

    @property
    def learning_rate(self) -> float:
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def run(self) -> None:
        """Train from where things stand to the end, or to where validation says that there is no more to gain."""
        batch_images = self.config.batch_size * self.accelerator.num_processes
        with image_progress(disable=not self.accelerator.is_main_process) as progress:
            task = progress.add_task(
                self.description,
                total=self.config.epochs * self.batches_per_epoch * batch_images,
                completed=(self.epoch * self.batches_per_epoch + self.batch) * batch_images,
                note="",
            )

            def show() -> None:
                note = f"epoch {self.epoch + 1}/{self.config.epochs}, lr {self.learning_rate:.1e}"
                mean = f", loss {self.loss_sum / self.seen:.4f}" if self.seen else ""
                progress.update(task, advance=batch_images, note=note + mean)

            while self.epoch < self.config.epochs and not self.best.is_old:
                self._run_epoch(show)

    def _run_epoch(self, show: Callable[[], None]) -> None:
        config = self.config
        self.student.train()
        _drop_patches(
            self.model, config.patch_drop_rate if self.epoch < config.epochs - config.all_patches_epochs else 0.0
        )
        loader: Any = self.images.epoch(self.epoch, self.accelerator, skip=self.batch)
        try:
            for batch, labels in loader:
                set_seed(seed_of(self.images.seed, self.epoch, 2, self.batch), device_specific=True)
                self._step(batch, labels)
                self.batch += 1
                show()
                if self.accelerator.sync_gradients:
                    self._after_update()
                if self.best.is_old:
                    return
        finally:
            loader.end()  # Accelerate believes that it is still in a loader that was left before its end
        self.images.images.check_unreadable(int(self._over_processes(self.unreadable)), self.max_unreadable)
        self.epoch, self.batch, self.unreadable = self.epoch + 1, 0, 0
        if not self.history or self.history[-1]["updates"] < self.updates:
            self._record()
        self.save()

    def _step(self, batch: Tensor, labels: Tensor) -> None:
        """Learn from one batch; the optimizer moves where gradients of enough batches are there."""
        images, targets = batch[labels != SKIPPED], labels[labels != SKIPPED]
        self.unreadable += len(labels) - len(images)
        if self.mixup is not None:
            even = len(images) // 2 * 2  # timm's mixup pairs images
            images, targets = self.mixup(images[:even], targets[:even])
        if len(images) == 0:
            return
        taught = None
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                taught = self.teacher(images)
        with self.accelerator.accumulate(self.student):
            parts = self.objective(self.student(images), targets, taught)
            loss = torch.stack(list(parts.values())).sum()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} in epoch {self.epoch + 1}; lower learning_rate")
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.config.clip_grad_norm is not None:
                self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.clip_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.loss_sum, self.seen = self.loss_sum + loss.item() * len(images), self.seen + len(images)
        if self.accelerator.trackers and self.accelerator.sync_gradients:
            values = {f"loss/{name}": part.item() for name, part in parts.items()}
            self._log(values | {"loss": loss.item(), "learning_rate": self.learning_rate}, self.updates + 1)

    def _after_update(self) -> None:
        self.updates += 1
        if self.scheduler is not None:
            self.scheduler.step_update(self.updates)
        if self.average:
            self.average.update(self.model, step=self.updates)
        if self.config.validate_steps and self.updates % self.config.validate_steps == 0:
            self._record()
        if self.updates % self.config.save_steps == 0:
            self.save()

    def _record(self) -> None:
        """Note the loss since the last record and, where there are images for it, how good the model is by now."""
        record = {
            "epoch": round(self.epoch + self.batch / self.batches_per_epoch, 4),
            "updates": float(self.updates),
            "loss": self._over_processes(self.loss_sum) / max(self._over_processes(self.seen), 1),
            "learning_rate": self.learning_rate,
        }
        self.loss_sum, self.seen = 0.0, 0
        if self.validate is not None:
            record["top1"] = self.validate(self.result)
            self.best.see(record["top1"], self.result)
            self._log({"top1": record["top1"]}, self.updates)
        self.history.append(record)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in record.items())
        log.info("%s: %s", self.description, shown)

    def _log(self, values: Mapping[str, float], update: int) -> None:
        self.accelerator.log(dict(values), step=update)

    def _over_processes(self, number: float) -> float:
        """The sum of what every process has of `number`."""
        if self.accelerator.num_processes == 1:
            return number
        of_mine = torch.tensor(number, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(of_mine, reduction="sum").item())

    def finish(self) -> None:
        """Leave the result in the model that was given, in eval mode, and Accelerate without a reference to it."""
        _drop_patches(self.model, 0.0)
        self.model.load_state_dict(self.best.weights or self.result.state_dict())
        self.model.eval()
        self.accelerator.free_memory()

    def save(self) -> None:
        """Write the state, all or nothing; between two optimizer steps, so that there are no gradients to keep."""
        # sums over processes, which the main process goes on from, and the others from nothing
        sums = {name: self._over_processes(getattr(self, name)) for name in ("loss_sum", "seen", "unreadable")}
        if self.state_file is None or not self.accelerator.is_main_process:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "best": self.best.state(),
            "history": self.history,
            "place": {"epoch": self.epoch, "batch": self.batch, "updates": self.updates},
            "sums": sums,
        }
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.state_file) as part:
            torch.save(state, part)

    def resume(self) -> None:
        """Go on from what an earlier call left in the state file, if there is one."""
        if self.state_file is None or not self.state_file.exists():
            return
        state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.best.restore(state["best"])
        self.history = list(state["history"])
        for name, value in state["place"].items():
            setattr(self, name, value)
        if self.accelerator.is_main_process:
            self.loss_sum, self.seen = state["sums"]["loss_sum"], int(state["sums"]["seen"])
            self.unreadable = int(state["sums"]["unreadable"])
        log.info("%s goes on after %d updates, found in %s", self.description, self.updates, self.state_file)


def _drop_patches(model: Any, rate: float) -> None:
    """Set (in place) the share of patch tokens that `model` drops in training, where it has a part for that."""
    if hasattr(model, "patch_drop"):
        model.patch_drop = PatchDropout(rate, num_prefix_tokens=model.num_prefix_tokens) if rate else nn.Identity()
