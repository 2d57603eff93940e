"""Training loop on Accelerate: from scratch, or to recover accuracy after pruning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.layers import PatchDropout
from torch import Tensor, nn

from pathprune.data import SKIPPED, LabelledImages
from pathprune.progress import image_progress
from pathprune.recovery.best_weights import BestWeights
from pathprune.recovery.checks import check_config
from pathprune.recovery.config import TrainConfig
from pathprune.recovery.freezing import find_stem_parameters, find_unused_parameters, freeze
from pathprune.recovery.images import TrainingImages, derive_seed, training_transform
from pathprune.recovery.losses import TrainingLoss
from pathprune.recovery.optimization import (
    build_average,
    build_mixup,
    build_optimizer,
    build_scheduler,
    mix_images,
)
from pathprune.recovery.outputs import OutputModel
from pathprune.recovery.state import Position, Record, Sums, TrainingState

log = logging.getLogger(__name__)


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
    """Train `model` in place; return a record per epoch and validation: epoch, updates, loss, learning rate, top-1.

    - teacher: model for `config.distill`. It gets the same normalised images and is set to eval mode.
    - accelerator: decides on device, processes and precision; the trainer logs to its trackers.
    - max_unreadable: fraction of images that may be unreadable. Unreadable images are skipped.
    - state_file: written every `config.save_steps` optimizer steps and after every epoch. If the file exists, training
      continues from it and ends with the same weights as an uninterrupted training.
    - validate: returns a model's top-1 on validation images. `model` ends with the weights of its best result.

    Raises `ValueError` for a config that does not fit the model or the arguments, and `FloatingPointError` if the loss
    is not finite.
    """
    check_config(config, model, teacher=teacher, can_validate=validate is not None)
    size = data_config["input_size"]
    frozen = find_unused_parameters(model, input_size=size, logits=config.learns_logits, states=config.learns_states)
    if config.freeze_stem:
        frozen += find_stem_parameters(model, input_size=size)
    transformed = images.with_transform(training_transform(data_config, config))
    with freeze(frozen):
        trainer = _Trainer(
            model,
            TrainingImages(transformed, config.batch_size, seed, num_workers),
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
    return trainer.state.history


class _Trainer:
    """Training loop of one model."""

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
        self.images, self.config, self.accelerator = images, config, accelerator
        self.max_unreadable, self.state_file, self.validate = max_unreadable, state_file, validate
        self.description = description
        self.batches_per_epoch = images.batches_per_epoch(accelerator.num_processes)
        average, optimizer = build_average(model, config), build_optimizer(model, config)
        if accelerator.scaler:  # an earlier training with this accelerator may have changed its scale
            accelerator.scaler.load_state_dict(type(accelerator.scaler)(accelerator.device.type).state_dict())
        accelerator.gradient_accumulation_steps = config.accumulate_steps
        accelerator.step = 0  # an earlier training with this accelerator may have ended within a group of batches
        student, prepared_optimizer = accelerator.prepare(
            OutputModel(model, states=config.learns_states, checkpointing=config.grad_checkpointing), optimizer
        )
        self.student: Any = torch.compile(student) if config.compile else student
        self.teacher: Any = None
        if config.distill is not None and teacher is not None:
            outputs = OutputModel(teacher, states=config.learns_states).eval()
            self.teacher = torch.compile(outputs) if config.compile else outputs
        self.scheduler = build_scheduler(optimizer, config, batches_per_epoch=self.batches_per_epoch)
        self.mixup = build_mixup(config, num_classes=num_classes)
        self.loss = TrainingLoss(config)
        self.state = TrainingState(
            model,
            prepared_optimizer,
            average,
            accelerator.scaler,
            best=BestWeights(config.patience),
            schedule=getattr(self.scheduler, "lr_scheduler", None),
        )
        self._num_images_of_group = 0  # of this process, since the last update

    def resume(self) -> None:
        """Continue from the state file of an earlier call, if it exists."""
        if self.state_file is not None and self.state_file.exists():
            self.state.load(self.state_file, is_main_process=self.accelerator.is_main_process)
            updates = self.state.position.updates
            log.info("%s continues after %d optimizer steps, from %s", self.description, updates, self.state_file)

    def run(self) -> None:
        """Train from the current position to the last epoch, or until the patience is exhausted."""
        position, epochs = self.state.position, self.config.epochs
        images_per_batch = self.config.batch_size * self.accelerator.num_processes
        with image_progress(disable=not self.accelerator.is_main_process) as progress:
            task = progress.add_task(
                self.description,
                total=epochs * self.batches_per_epoch * images_per_batch,
                completed=(position.epoch * self.batches_per_epoch + position.batch) * images_per_batch,
                note="",
            )

            def advance() -> None:
                note = f"epoch {position.epoch + 1}/{epochs}, lr {self._learning_rate:.1e}"
                sums = self.state.sums
                mean_loss = f", loss {sums.loss / sums.num_images:.4f}" if sums.num_images else ""
                progress.update(task, advance=images_per_batch, note=note + mean_loss)

            while position.epoch < epochs and not self.state.best.is_patience_exhausted:
                self._run_epoch(position, advance)

    def finish(self) -> None:
        """Load the final weights into the model, set it to eval mode, and remove it from the accelerator."""
        _set_patch_dropout(self.state.model, 0.0)
        self.state.model.load_state_dict(self.state.best.weights or self._averaged_model.state_dict())
        self.state.model.eval()
        self.accelerator.free_memory()

    @property
    def _averaged_model(self) -> nn.Module:
        """Model with the averaged weights; the model itself if there is no average."""
        return self.state.average.module if self.state.average else self.state.model

    @property
    def _learning_rate(self) -> float:
        return max(float(group["lr"]) for group in self.state.optimizer.param_groups)

    def _run_epoch(self, position: Position, advance: Callable[[], None]) -> None:
        config = self.config
        self.student.train()
        drops_patches = position.epoch < config.epochs - config.all_patches_epochs
        _set_patch_dropout(self.state.model, config.patch_drop_rate if drops_patches else 0.0)
        loader: Any = self.images.epoch(position.epoch, self.accelerator, skip=position.batch)
        try:
            for batch, labels in loader:
                seed = derive_seed(self.images.seed, position.epoch, 2, position.batch)
                set_seed(seed, device_specific=True)
                is_update = self._step(batch, labels)
                position.batch += 1
                advance()
                if is_update:
                    self._after_update(position)
                if self.state.best.is_patience_exhausted:
                    return
        finally:
            loader.end()  # after an early return, Accelerate would still count on this loader
        num_unreadable = int(self._sum_over_processes(self.state.sums.num_unreadable))
        self.images.images.check_unreadable(num_unreadable, self.max_unreadable)
        position.epoch, position.batch, self.state.sums.num_unreadable = position.epoch + 1, 0, 0
        history = self.state.history
        if not history or history[-1]["updates"] < position.updates:
            self._record(position)
        if self.scheduler is not None:
            self.scheduler.step(position.epoch, metric=history[-1].get("top1", -history[-1]["loss"]))
        self._save()

    def _step(self, batch: Tensor, labels: Tensor) -> bool:
        """Add the gradients of one batch; return True if the batch is the last of a group and the weights changed."""
        images, targets = batch[labels != SKIPPED], labels[labels != SKIPPED]
        num_images, sums = len(images), self.state.sums
        sums.num_unreadable += len(labels) - num_images
        weight = self._weight_of_batch()
        if num_images == 0:  # the other processes would wait for this one's gradients
            images, targets, weight = batch[:1], torch.zeros_like(labels[:1]), 0.0
        elif self.mixup is not None:
            images, targets = mix_images(self.mixup, images, targets)
        teacher_output = None
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                teacher_output = self.teacher(images)
        with self.accelerator.accumulate(self.student):
            terms = self.loss(self.student(images), targets, teacher_output)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                epoch = self.state.position.epoch + 1
                raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch}; lower learning_rate")
            self.accelerator.backward(weight * loss)
            sums.loss, sums.num_images = sums.loss + loss.item() * num_images, sums.num_images + num_images
            self._num_images_of_group += num_images
            is_update = self.accelerator.sync_gradients and self._ends_group_with_images()
            if is_update:
                if self.config.clip_grad_norm is not None:
                    self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.clip_grad_norm)
                self.state.optimizer.step()
            self.state.optimizer.zero_grad()
        if self.accelerator.trackers and is_update:
            values = {f"loss/{name}": term.item() for name, term in terms.items()}
            values |= {"loss": loss.item(), "learning_rate": self._learning_rate}
            self.accelerator.log(values, step=self.state.position.updates + 1)
        return is_update

    def _weight_of_batch(self) -> float:
        """Return the factor that makes the gradient of an incomplete last group the mean over the group's batches.

        Accelerate divides the loss of every batch by `accumulate_steps`.
        """
        steps = self.config.accumulate_steps
        start_of_group = self.state.position.batch // steps * steps
        return steps / min(steps, self.batches_per_epoch - start_of_group)

    def _ends_group_with_images(self) -> bool:
        """Return True if any process had a readable image since the last update, and start counting again."""
        number, self._num_images_of_group = self._num_images_of_group, 0
        return self._sum_over_processes(number) > 0

    def _after_update(self, position: Position) -> None:
        position.updates += 1
        if self.scheduler is not None:
            self.scheduler.step_update(position.updates)
        if self.state.average:
            self.state.average.update(self.state.model, step=position.updates)
        if self.config.validate_steps and position.updates % self.config.validate_steps == 0:
            self._record(position)
        if position.updates % self.config.save_steps == 0:
            self._save()

    def _record(self, position: Position) -> None:
        """Append the mean loss since the last record and, with validation images, the top-1 to the history."""
        sums = self.state.sums
        record = {
            "epoch": round(position.epoch + position.batch / self.batches_per_epoch, 4),
            "updates": float(position.updates),
            "loss": self._sum_over_processes(sums.loss) / max(self._sum_over_processes(sums.num_images), 1),
            "learning_rate": self._learning_rate,
        }
        sums.loss, sums.num_images = 0.0, 0
        if self.validate is not None:
            record["top1"] = self.validate(self._averaged_model)
            self.state.best.update(record["top1"], self._averaged_model)
            self.accelerator.log({"top1": record["top1"]}, step=position.updates)
        self.state.history.append(record)
        values = ", ".join(f"{key} {value:.4g}" for key, value in record.items())
        log.info("%s: %s", self.description, values)

    def _save(self) -> None:
        sums = self.state.sums
        totals = Sums(  # every process takes part in the sums, the main process alone writes
            self._sum_over_processes(sums.loss),
            int(self._sum_over_processes(sums.num_images)),
            int(self._sum_over_processes(sums.num_unreadable)),
        )
        if self.state_file is not None and self.accelerator.is_main_process:
            self.state.save(self.state_file, totals=totals)

    def _sum_over_processes(self, number: float) -> float:
        if self.accelerator.num_processes == 1:
            return number
        local = torch.tensor(number, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(local, reduction="sum").item())


def _set_patch_dropout(model: Any, rate: float) -> None:
    """Set, in place, the fraction of patch tokens that `model` drops in training, if it has a layer for that."""
    if hasattr(model, "patch_drop"):
        model.patch_drop = PatchDropout(rate, num_prefix_tokens=model.num_prefix_tokens) if rate else nn.Identity()
