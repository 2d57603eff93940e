"""The images of each use of a recipe: mining, calibration, training, evaluation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

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
)
from pathprune.data.class_names import class_indices, class_name
from pathprune.progress import TrackedBatches
from pathprune.recipe import Recipe

log = logging.getLogger(__name__)

Use = Literal["mine", "calibrate", "train", "validation", "evaluate"]

Choose = Callable[[LabelledImages, tuple[str, ...]], LabelledImages]
"""All images of the mining split, the names of the classes -> the images to mine, labelled with what they count for."""


class Splits:
    """Images by use, read when first asked for, with labels numbered as the model's classes are."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        num_classes: int | None,
        model_names: tuple[str, ...] | None,
        data_config: Mapping[str, Any],
        choose: Choose,
    ) -> None:
        """`num_classes` is None where the model has no classes; `choose` samples the images to mine."""
        self._recipe, self._num_classes, self._model_names = recipe, num_classes, model_names
        self._data_config, self._choose = data_config, choose
        self._source = open_source(recipe.data.source, config=recipe.data.config, revision=recipe.data.revision)
        self._data_names: tuple[str, ...] | None = None  # of the split that was read first
        self._images: dict[Use, LabelledImages] = {}
        self._hashes: dict[Use, list[bytes]] = {}

    def images(self, use: Use) -> LabelledImages:
        """The images of one use, sampled as the recipe says, without those that cannot be read.

        Training images are only decoded when they are trained on; the trainer skips what it cannot read.
        """
        if use not in self._images:
            recipe = self._recipe
            number = {
                "mine": None,
                "calibrate": recipe.score.num_images,
                "evaluate": recipe.evaluate.num_images,
                "train": None,
                "validation": None,
            }[use]
            images = self._of_classes(self._read(use))
            if use == "mine":
                images = self._choose(images, self.class_names)
            else:
                seed = recipe.evaluation_seed if use == "evaluate" else recipe.seed
                images = sample_balanced(images, num_images=number, seed=seed)
            if use == "train":
                self._hashes[use] = images.hash_content()
            else:
                images, self._hashes[use] = images.drop_unreadable(
                    max_unreadable=recipe.data.max_unreadable, threads=recipe.data.num_workers
                )
            self._images[use] = images
        return self._images[use]

    def _read(self, use: Use) -> LabelledImages:
        """All images of a split, none decoded, with labels numbered as the whole model's classes are."""
        data = self._recipe.data
        split = getattr(data.splits, use)
        assert split is not None, "the recipe checks that a split which is needed is named"
        images = read_split(
            self._source,
            split,
            image_column=data.image_column,
            label_column=data.label_column,
            labels=self._labels_needed(use),
        )
        images = self._named_alike(images)
        if self._num_classes is not None:
            check_labels(images, num_classes=self._num_classes)
        self._data_names = self._data_names or images.class_names
        return images.with_transform(evaluation_transform(self._data_config))

    def _of_classes(self, images: LabelledImages) -> LabelledImages:
        """The images of the recipe's classes, numbered as a sliced head is where the head is sliced."""
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
        """Indices, in the whole model, of the classes that the recipe names; none: all."""
        return tuple(class_indices(self._recipe.classes, self._all_names)) if self._recipe.classes else ()

    @cached_property
    def _all_names(self) -> tuple[str, ...]:
        """Names of the whole model's classes: the checkpoint's, else the data set's, else numbers.

        Of a model without classes those of the images to mine, which are all of one where they are unlabelled.
        """
        if self._num_classes is None:
            return self._data_names or self._read("mine").class_names or ("all",)
        names = self._model_names
        if names is None or len(names) != self._num_classes:
            names = self._read("evaluate").class_names if self._data_names is None else self._data_names
        return names if len(names) == self._num_classes else tuple(str(index) for index in range(self._num_classes))

    def _labels_needed(self, use: Use) -> Labels:
        mine = self._recipe.mine
        if use == "calibrate" or (use == "mine" and (mine.targets == "prediction" or self._num_classes is None)):
            return "any"
        multi_label = mine.objective is not None and mine.objective.name == "label-probability"
        return "each" if use == "mine" and multi_label else "one"

    def _named_alike(self, images: LabelledImages) -> LabelledImages:
        """The images with their classes numbered as the model's are, where both have names that tell."""
        known = self._model_names or self._data_names
        if not known or images.class_names == known or all(name.isdecimal() for name in images.class_names):
            return images
        if set(images.class_names) <= set(known):
            log.info("split '%s': classes are numbered by their names, as the model's are", images.split)
            return images.relabel(known)
        if self._model_names is None:
            raise ValueError(
                f"split '{images.split}' has the classes {', '.join(images.class_names[:5])} …, other splits have "
                f"{', '.join(known[:5])} …; store labels as numbers or datasets.ClassLabel with the same names"
            )
        return images  # names of another kind, such as WordNet ids beside words: numbers must do

    def check_disjoint(self, *uses: Use) -> None:
        """Refuse data in which an evaluation image is also used for `uses`, or one of validation for the others."""
        self.images("evaluate")
        if "validation" in uses:
            self.check_validation(*(use for use in uses if use != "validation"))
        refuse_overlap(self._hashes["evaluate"], self._hashes_of(uses))

    def check_validation(self, *uses: Use) -> None:
        """Refuse data in which an image of validation is also used for `uses`."""
        others = self._hashes_of(uses)
        self.images("validation")
        refuse_overlap(self._hashes["validation"], others, purpose="validation")

    def _hashes_of(self, uses: Sequence[Use]) -> dict[str, list[bytes]]:
        """Hashes of the images by use, as a verb."""
        for use in uses:
            self.images(use)
        return {"validate" if use == "validation" else use: self._hashes[use] for use in uses}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes; of those that are left in a sliced head."""
        if not self._recipe.model.slice_head:
            return self._all_names
        return tuple(self._all_names[index] for index in self.classes)

    def batches(self, use: Use, *, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """Re-iterable batches in a fixed order."""
        return make_loader(self.images(use), batch_size=batch_size, num_workers=self._recipe.data.num_workers)

    def calibration(self, description: str, *, num_images: int | None = None) -> TrackedBatches:
        """Batches of calibration images, the first `num_images` of them, that show a progress bar."""
        images = self.images("calibrate")
        images = images.take(np.arange(len(images))[:num_images])
        workers, batch_size = self._recipe.data.num_workers, self._recipe.score.batch_size
        return TrackedBatches(make_loader(images, batch_size=batch_size, num_workers=workers), description, len(images))

    def key(self, use: Use) -> str:
        """Key of the images of one use, their labels and their order."""
        images = self.images(use)
        content = b"".join(self._hashes[use]) + images.labels.tobytes()
        return hashlib.blake2b(content, digest_size=12).hexdigest()
