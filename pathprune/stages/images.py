"""The images of each use of a recipe: calibration, training, validation, evaluation, and the candidates for mining."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from pathprune.data import (
    DataError,
    LabelledImages,
    Labels,
    check_labels,
    evaluation_transform,
    make_loader,
    open_source,
    read_split,
    refuse_overlap,
    sample_balanced,
    sample_stratified,
)
from pathprune.data.class_names import class_indices, class_name
from pathprune.progress import TrackedBatches
from pathprune.recipe import Recipe
from pathprune.stages.model import RecipeModel

log = logging.getLogger(__name__)

Use = Literal["calibrate", "train", "validation", "evaluate"]
_Split = Literal["mine", "calibrate", "train", "validation", "evaluate"]


@dataclass(frozen=True)
class ImageSet:
    """Images of one use, with a hash of each image's content."""

    images: LabelledImages
    hashes: list[bytes]

    @cached_property
    def key(self) -> str:
        """Key of the images, their labels and their order."""
        content = b"".join(self.hashes) + self.images.labels.tobytes()
        return hashlib.blake2b(content, digest_size=12).hexdigest()

    def __len__(self) -> int:
        return len(self.images)


class Splits:
    """Images by use, read on first access, with labels numbered like the model's classes."""

    def __init__(self, recipe: Recipe, model: RecipeModel) -> None:
        """`model` is the whole model, before its head is sliced."""
        self._recipe = recipe
        self._num_classes, self._model_names = model.num_classes, model.class_names
        self._data_config = model.data_config
        self._source = open_source(recipe.data.source, config=recipe.data.config, revision=recipe.data.revision)
        self._data_names: tuple[str, ...] | None = None  # of the first split read
        self._sets: dict[Use, ImageSet] = {}

    def of(self, use: Use) -> ImageSet:
        """Return the images of one use, sampled as the recipe says, without unreadable ones.

        Training images are decoded during training only; the trainer skips unreadable ones.
        """
        if use not in self._sets:
            images = self._sample(use)
            is_lazy = use == "train"
            self._sets[use] = ImageSet(images, images.hash_content()) if is_lazy else self.readable(images)
        return self._sets[use]

    def _sample(self, use: Use) -> LabelledImages:
        """Return the sample of a use.

        Calibration images are in random order: criteria use the first of them, fits validate on every other one.
        """
        recipe, images = self._recipe, self.candidates(use)
        if use == "calibrate":
            return sample_balanced(images, num_images=recipe.score.num_images, seed=recipe.seed)
        if use == "evaluate":
            return sample_stratified(images, num_images=recipe.evaluate.num_images, seed=recipe.evaluation_seed)
        return images

    def candidates(self, use: _Split) -> LabelledImages:
        """Return all images of a use's split that belong to the recipe's classes, nothing decoded."""
        return self._select_classes(self._read(use))

    def readable(self, images: LabelledImages) -> ImageSet:
        """Decode every image once and return the readable ones; raises `DataError` where too many are not."""
        data = self._recipe.data
        return ImageSet(*images.drop_unreadable(max_unreadable=data.max_unreadable, threads=data.num_workers))

    def _read(self, use: _Split) -> LabelledImages:
        """Return all images of a split, nothing decoded, with labels numbered like the whole model's classes."""
        data = self._recipe.data
        split = getattr(data.splits, use)
        assert split is not None, "the recipe checks that a needed split is named"
        images = read_split(
            self._source,
            split,
            image_column=data.image_column,
            label_column=data.label_column,
            labels=self._needed_labels(use),
        )
        images = self._number_by_name(images)
        if self._num_classes is not None:
            check_labels(images, num_classes=self._num_classes)
        self._data_names = self._data_names or images.class_names
        return images.with_transform(evaluation_transform(self._data_config))

    def _select_classes(self, images: LabelledImages) -> LabelledImages:
        """Return the images of the recipe's classes, renumbered like the rows of a sliced head."""
        if not self.classes or not images.is_labelled:
            return images
        kept = images.take(np.flatnonzero(np.isin(images.labels, self.classes)))
        for index in self.classes:
            if index not in kept.labels:
                raise DataError(
                    f"split '{images.split}' has no images of {class_name(index, self._all_names)}, which `classes` "
                    "names; leave the class out, or choose another split"
                )
        if not self._recipe.model.slice_head:
            return kept
        numbers = np.full(len(self._all_names), -1)
        numbers[list(self.classes)] = np.arange(len(self.classes))
        return replace(kept, labels=numbers[kept.labels], class_names=self.class_names)

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """Indices, in the whole model, of the recipe's classes; empty for all."""
        return tuple(class_indices(self._recipe.classes, self._all_names)) if self._recipe.classes else ()

    @cached_property
    def _all_names(self) -> tuple[str, ...]:
        """Names of the whole model's classes: the checkpoint's, else the data set's, else numbers.

        A model without classes takes the names of the images to mine, or one class "all" for unlabelled images.
        """
        if self._num_classes is None:
            return self._data_names or self._read("mine").class_names or ("all",)
        names = self._model_names
        if names is None or len(names) != self._num_classes:
            names = self._read("evaluate").class_names if self._data_names is None else self._data_names
        return names if len(names) == self._num_classes else tuple(str(index) for index in range(self._num_classes))

    def _needed_labels(self, use: _Split) -> Labels:
        mine = self._recipe.mine
        if use == "calibrate" or (use == "mine" and (mine.targets == "prediction" or self._num_classes is None)):
            return "any"
        is_multi_label = mine.objective is not None and mine.objective.name == "label-probability"
        return "each" if use == "mine" and is_multi_label else "one"

    def _number_by_name(self, images: LabelledImages) -> LabelledImages:
        """Number the images' classes like the model's, where both have names and the names match."""
        known = self._model_names or self._data_names
        if not known or images.class_names == known or all(name.isdecimal() for name in images.class_names):
            return images
        if set(images.class_names) <= set(known):
            log.info("split '%s': classes are numbered by their names, like the model's", images.split)
            return images.relabel(known)
        if self._model_names is None:
            raise ValueError(
                f"split '{images.split}' has the classes {', '.join(images.class_names[:5])} …, other splits have "
                f"{', '.join(known[:5])} …; store labels as numbers or datasets.ClassLabel with the same names"
            )
        return images  # names of another kind, such as WordNet ids beside words: numbers must do

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes; with a sliced head, of the remaining ones."""
        if not self._recipe.model.slice_head:
            return self._all_names
        return tuple(self._all_names[index] for index in self.classes)

    def batches(self, use: Use, *, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return re-iterable batches in a fixed order."""
        return make_loader(self.of(use).images, batch_size=batch_size, num_workers=self._recipe.data.num_workers)

    def calibration(self, description: str, *, num_images: int | None = None) -> TrackedBatches:
        """Return batches of the first `num_images` calibration images, with a progress bar named `description`."""
        images = self.of("calibrate").images
        images = images.take(np.arange(len(images))[:num_images])
        workers, batch_size = self._recipe.data.num_workers, self._recipe.score.batch_size
        return TrackedBatches(make_loader(images, batch_size=batch_size, num_workers=workers), description, len(images))


def check_disjoint(
    held_out: ImageSet, others: Mapping[str, ImageSet], *, purpose: Literal["evaluation", "validation"] = "evaluation"
) -> None:
    """Refuse data in which a held-out image is also used otherwise; the keys of `others` are verbs."""
    refuse_overlap(held_out.hashes, {verb: other.hashes for verb, other in others.items()}, purpose=purpose)
