"""The sample of images to mine, labelled with the class that each image counts for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pathprune.artifacts import ArtifactKind, Codec
from pathprune.data import SKIPPED, LabelledImages, make_loader
from pathprune.data.class_names import class_indices
from pathprune.keys import key_of_array
from pathprune.mining import CleanCosine, LabelProbability, Sampling, sample_for_mining
from pathprune.models.adapt import evaluating, find_device
from pathprune.progress import image_progress
from pathprune.stages.context import Context
from pathprune.stages.images import ImageSet, Splits


@dataclass(frozen=True)
class Sample:
    """Positions of the sampled images in their split, and the class that each counts for; both int64 `[N]`."""

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]

    def save(self, file: Path) -> None:
        """Write the sample as safetensors."""
        save_file({"indices": self.indices, "labels": self.labels}, file)

    @classmethod
    def load(cls, file: Path) -> Sample:
        """Read a sample that `save` wrote."""
        return cls(**load_file(file))


SAMPLE = ArtifactKind(
    "images/mine.safetensors",
    inputs=("sampling", "seed", "positions", "labels", "predictions"),
    codec=Codec(Sample.save, Sample.load),
)


class MiningSample:
    """The recipe's sample of the mining split, drawn once and shared by all processes."""

    def __init__(self, context: Context, splits: Splits) -> None:
        self._context, self._splits = context, splits
        self._config = context.recipe.mine

    @cached_property
    def image_set(self) -> ImageSet:
        """The images to mine, without unreadable ones."""
        return self._splits.readable(self._draw(self._splits.candidates("mine")))

    @property
    def images(self) -> LabelledImages:
        return self.image_set.images

    @property
    def key(self) -> str:
        """Key of the images, their labels and their order."""
        return self.image_set.key

    def path_settings(self) -> dict[str, object]:
        """Return the recipe's settings that decide which paths are found, as plain data."""
        settings = self._config.model_dump(mode="json", exclude={"check_images"}, exclude_none=True)
        if self._config.objective is not None:
            settings["objective"] = self._config.objective.spec()
        return settings

    def _draw(self, images: LabelledImages) -> LabelledImages:
        context, config = self._context, self._config
        self._check_labels(images)
        if context.model.num_classes is None and not images.is_labelled:
            images = replace(images, labels=np.zeros_like(images.labels))
        class_names = self._splits.class_names
        # a sliced head has the recipe's classes only
        recipe_classes = () if context.recipe.model.slice_head else self._splits.classes
        classes = list(recipe_classes) if config.classes is None else class_indices(config.classes, class_names)
        sampling = Sampling(
            num_images=config.num_images,
            images_per_class=config.images_per_class,
            classes=classes or None,
            by=config.targets,
            only_correct=config.only_correct,
        )
        predictor = [context.model_key, self.path_settings(), images.source_key]
        artifact = SAMPLE.of(
            sampling=asdict(sampling),
            seed=context.recipe.seed,
            positions=key_of_array(images.indices),
            labels=key_of_array(images.labels),
            predictions=predictor if sampling.needs_predictions else None,
        )

        def draw() -> Sample:
            drawn = sample_for_mining(
                images, sampling, num_classes=len(class_names), predict=self._predict, seed=context.recipe.seed
            )
            return Sample(drawn.indices, drawn.labels)

        sample = context.obtain_by_all(artifact, draw)
        names = images.class_names if sampling.by == "label" else ()
        return replace(images, indices=sample.indices, labels=sample.labels, class_names=names)

    def _check_labels(self, images: LabelledImages) -> None:
        config, objective = self._config, self._context.model.objective
        if isinstance(objective, CleanCosine) and (config.targets == "prediction" or config.only_correct):
            raise ValueError(
                "objective cosine predicts no classes; leave out mine.targets=prediction and mine.only_correct, or "
                "give the model classes with mine.objective={name: zero-shot, head: FILE}"
            )
        if config.only_correct and not images.is_labelled:
            raise ValueError(f"mine.only_correct needs labels, but split '{images.split}' has none; leave it out")
        if config.only_correct and isinstance(objective, LabelProbability):
            raise ValueError("mine.only_correct needs one label per image, but label-probability is for several")

    def _predict(self, images: LabelledImages) -> NDArray[np.int64]:
        """Predict each image's class, `SKIPPED` for unreadable images; all processes share the work."""
        context, module = self._context, self._context.model.module
        accelerator = context.accelerator
        own = images.take(np.arange(accelerator.process_index, len(images), accelerator.num_processes))
        device, predictions = find_device(module), [torch.zeros(0, dtype=torch.int64)]
        loader = make_loader(
            own, batch_size=context.recipe.evaluate.batch_size, num_workers=context.recipe.data.num_workers
        )
        with image_progress(disable=not accelerator.is_main_process) as progress, evaluating(module), torch.no_grad():
            task = progress.add_task("predicting classes to sample by", total=len(own), note="")
            for batch, labels in loader:
                logits = context.model.objective.class_logits(module(batch.to(device)))
                assert logits is not None, "objectives without classes are refused before"
                predictions.append(logits.argmax(-1).cpu().where(labels != SKIPPED, SKIPPED))
                progress.advance(task, len(labels))
        result = np.empty(len(images), dtype=np.int64)
        for process, part in enumerate(gather_object([torch.cat(predictions).numpy()])):
            result[process :: accelerator.num_processes] = part
        return result
