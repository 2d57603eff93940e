"""Trainings of an experiment: its images, its teacher, its trackers, and a state to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import nn

from pathprune.evaluation import evaluate_model
from pathprune.keys import key_of
from pathprune.mining import ZeroShot
from pathprune.models.loading import load_model
from pathprune.recovery import TrainConfig, train
from pathprune.stages.experiment import Experiment, weights_key


def training_key(experiment: Experiment, config: TrainConfig, *, start: str) -> str:
    """Key of what a training makes of the model that the key `start` stands for."""
    recipe, splits = experiment.recipe, experiment.splits
    named = config.distill.teacher if config.distill else None
    return key_of(
        start=start,
        teacher=weights_key(load_model(named).model) if named else None,
        training=config.content,
        images=splits.key("train"),
        validation=splits.key("validation") if recipe.data.splits.validation else None,
        seed=recipe.seed,
        precision=recipe.mixed_precision,
        processes=experiment.accelerator.num_processes,  # each takes batches of the size that the config says
    )


def check_training(experiment: Experiment, config: TrainConfig) -> None:
    """Refuse images trained on and also evaluated or validated on, and labels for a model that is no classifier."""
    if config.labels and (experiment.adapted.num_classes == 0 or isinstance(experiment.objective, ZeroShot)):
        raise ValueError("labels are learned by a classifier, which the model is not; set labels to 0 and distil")
    validation = ("validation",) if experiment.recipe.data.splits.validation else ()
    experiment.splits.check_disjoint("train", *validation)


def train_model(
    experiment: Experiment,
    model: nn.Module,
    config: TrainConfig,
    *,
    name: str,
    key: str,
    teacher: nn.Module | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place, by `config`, on the experiment's training images; returns the records of it.

    `name` is what the progress bar and the trackers call it. `teacher` is the one for a config that names none. The
    state of an unfinished training is under `training/`, and gone when it is done.
    """
    recipe, splits, folder = experiment.recipe, experiment.splits, experiment.folder
    state_file = folder.path / "training" / f"{key}.pt"
    if config.distill is not None and config.distill.teacher is not None:
        teacher = _load_teacher(experiment, config.distill.teacher)

    def top1(trained: nn.Module) -> float:
        loader = splits.batches("validation", batch_size=recipe.evaluate.batch_size)
        found = evaluate_model(
            experiment.classifier(trained), loader, accelerator=experiment.accelerator, description=f"{name}, validated"
        )
        return float(found.summary()["top1"])

    with tracked(experiment.accelerator, f"{recipe.name}-{name}", config):
        return train(
            model,
            splits.images("train"),
            config=config,
            data_config=experiment.data_config,
            num_classes=experiment.adapted.num_classes,
            teacher=teacher,
            accelerator=experiment.accelerator,
            seed=recipe.seed,
            max_unreadable=recipe.data.max_unreadable,
            num_workers=recipe.data.num_workers,
            state_file=state_file,
            validate=top1 if recipe.data.splits.validation else None,
            description=name,
        )


def forget_state(experiment: Experiment, *, key: str) -> None:
    """Remove the state of a training whose result is saved."""
    if experiment.folder.main:
        (experiment.folder.path / "training" / f"{key}.pt").unlink(missing_ok=True)


@contextmanager
def tracked(accelerator: Accelerator, name: str, config: TrainConfig) -> Iterator[None]:
    """While open, what is logged goes to the recipe's trackers, as a run called `name`."""
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


def _load_teacher(experiment: Experiment, name: str) -> nn.Module:
    """The teacher called `name`; raises `ValueError` for one that sees other images or knows other classes."""
    loaded = load_model(name)
    for part in ("input_size", "mean", "std"):
        ours, theirs = (tuple(config[part]) for config in (experiment.data_config, loaded.data_config))
        if ours != theirs:
            raise ValueError(f"teacher '{name}' takes images of {part} {theirs}, the model of {ours}; they must agree")
    model: Any = loaded.model.to(experiment.accelerator.device)
    if model.num_classes != experiment.adapted.num_classes:
        raise ValueError(
            f"teacher '{name}' knows {model.num_classes} classes, the model {experiment.adapted.num_classes}"
        )
    return loaded.model
