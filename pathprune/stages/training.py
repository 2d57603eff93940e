"""The training stage: images, teacher, trackers and a resumable state for one training run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import nn

from pathprune.evaluation import evaluate_model
from pathprune.keys import key_of
from pathprune.models.loading import load_model
from pathprune.recovery import TrainConfig, train
from pathprune.stages.context import Context
from pathprune.stages.images import Splits, check_disjoint
from pathprune.stages.model import weights_key


class Training:
    """Trainings of the recipe's model and of its pruned variants."""

    def __init__(self, context: Context, splits: Splits) -> None:
        self._context, self._splits = context, splits

    def key(self, config: TrainConfig, *, start: str) -> str:
        """Return the key of the model that a training makes of the model with the key `start`."""
        recipe = self._context.recipe
        teacher = config.distill.teacher if config.distill else None
        return key_of(
            start=start,
            teacher=weights_key(load_model(teacher).model) if teacher else None,
            training=config.content,
            images=self._splits.of("train").key,
            validation=self._splits.of("validation").key if recipe.data.splits.validation else None,
            head=self._context.model.head_spec,
            seed=recipe.seed,
            precision=recipe.mixed_precision,
            processes=self._context.accelerator.num_processes,  # each takes batches of the configured size
        )

    def check(self, config: TrainConfig) -> None:
        """Refuse images that are trained on and also held out, and labels for a model without a classifier."""
        if config.labels and not self._context.model.is_classifier:
            raise ValueError("the model has no classifier to learn labels with; set labels to 0 and distil")
        train_images, evaluation = self._splits.of("train"), self._splits.of("evaluate")
        others = {"train": train_images}
        if self._context.recipe.data.splits.validation:
            check_disjoint(self._splits.of("validation"), others, purpose="validation")
            others["validate"] = self._splits.of("validation")
        check_disjoint(evaluation, others)

    def train(
        self, model: nn.Module, config: TrainConfig, *, name: str, key: str, teacher: nn.Module | None = None
    ) -> list[dict[str, float]]:
        """Train `model` in place and return the records of epochs and validations.

        `name` labels the progress bar and the trackers' run. `teacher` serves a config that names none. An interrupted
        training resumes from `training/<key>.pt`; call `discard_state` once the result is stored.
        """
        context, splits, recipe = self._context, self._splits, self._context.recipe
        if config.distill is not None and config.distill.teacher is not None:
            teacher = self._load_teacher(config.distill.teacher)

        def top1(trained: nn.Module) -> float:
            loader = splits.batches("validation", batch_size=recipe.evaluate.batch_size)
            outcomes = evaluate_model(
                context.model.classifier(trained),
                loader,
                accelerator=context.accelerator,
                description=f"{name}, validated",
            )
            return float(outcomes.summary()["top1"])

        with _tracked(context.accelerator, f"{recipe.name}-{name}", config):
            return train(
                model,
                splits.of("train").images,
                config=config,
                data_config=dict(context.model.data_config),
                num_classes=context.model.adapted.num_classes,
                teacher=teacher,
                accelerator=context.accelerator,
                seed=recipe.seed,
                max_unreadable=recipe.data.max_unreadable,
                num_workers=recipe.data.num_workers,
                state_file=context.folder.path / "training" / f"{key}.pt",
                validate=top1 if recipe.data.splits.validation else None,
                description=name,
            )

    def discard_state(self, key: str) -> None:
        """Remove the state of a training whose result is stored."""
        if self._context.is_main:
            (self._context.folder.path / "training" / f"{key}.pt").unlink(missing_ok=True)

    def _load_teacher(self, name: str) -> nn.Module:
        """Load the teacher `name`; raises `ValueError` where its images or classes differ from the model's."""
        loaded, model = load_model(name), self._context.model
        for part in ("input_size", "mean", "std"):
            ours, theirs = (tuple(config[part]) for config in (model.data_config, loaded.data_config))
            if ours != theirs:
                raise ValueError(
                    f"teacher '{name}' takes images of {part} {theirs}, the model of {ours}; they must agree"
                )
        teacher: Any = loaded.model.to(self._context.accelerator.device)
        if teacher.num_classes != model.adapted.num_classes:
            raise ValueError(
                f"teacher '{name}' knows {teacher.num_classes} classes, the model {model.adapted.num_classes}"
            )
        return loaded.model


@contextmanager
def _tracked(accelerator: Accelerator, name: str, config: TrainConfig) -> Iterator[None]:
    """Send logged values to the recipe's trackers while open, as a run called `name`."""
    settings = {
        key: value if isinstance(value, int | float | str) else str(value) for key, value in config.content.items()
    }
    accelerator.init_trackers(name, config=settings)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers.clear()
