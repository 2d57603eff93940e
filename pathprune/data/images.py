"""Labelled images of one split, decoded on access and transformed to a model's input size and normalisation."""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image as PILImage
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

log = logging.getLogger(__name__)

SKIPPED = -1  # label of a row whose image cannot be decoded; no count includes these rows
UNLABELLED = -2  # label of an image without a label
Transform = Callable[[PILImage.Image], Tensor]


class DataError(ValueError):
    """Data that cannot be read with the given settings."""


@dataclass(frozen=True)
class LabelledImages(TorchDataset[tuple[Tensor, int]]):
    """Images and labels of one split: item -> `(image [C, H, W], label)`, or `(zeros, SKIPPED)` if unreadable."""

    split: str
    rows: Dataset
    indices: NDArray[np.int64]  # item -> row of the split
    image_column: str
    labels: NDArray[np.int64]  # item -> class index
    class_names: tuple[str, ...]
    transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        assert self.transform is not None, "call `with_transform` before reading items"
        try:
            image = _decode(self._cell(item))
        except _Unreadable:
            return torch.zeros_like(self.transform(PILImage.new("RGB", (8, 8)))), SKIPPED
        return self.transform(image), int(self.labels[item])

    def decode(self, item: int) -> PILImage.Image:
        """Return one image in RGB, without the transform. The image must be readable."""
        return _decode(self._cell(item))

    @property
    def is_labelled(self) -> bool:
        """True if every image has a label."""
        return not (self.labels == UNLABELLED).any()

    @property
    def source_key(self) -> str:
        """Fingerprint of the source: changes with the names, dates and sizes of its files, not with their content."""
        return str(self.rows._fingerprint)

    def with_transform(self, transform: Transform) -> LabelledImages:
        """Return the same images with another transform."""
        return replace(self, transform=transform)

    def take(self, items: NDArray[np.integer[Any]]) -> LabelledImages:
        """Return the given items, in the given order."""
        return replace(self, indices=self.indices[items], labels=self.labels[items])

    def relabel(self, class_names: Sequence[str]) -> LabelledImages:
        """Return the same images with labels that index `class_names`, which must contain every class of the images."""
        number = np.array([list(class_names).index(name) for name in self.class_names])
        # SKIPPED, UNLABELLED and labels out of range stay as they are; check_labels refuses the last
        is_class = (self.labels >= 0) & (self.labels < len(number))
        labels = np.where(is_class, number[np.where(is_class, self.labels, 0)], self.labels)
        return replace(self, class_names=tuple(class_names), labels=labels)

    def drop_unreadable(self, *, max_unreadable: float, threads: int = 1) -> tuple[LabelledImages, list[bytes]]:
        """Decode every image once; return the readable images and the content hash of each.

        The positions of unreadable images are logged. Raises `DataError` if the fraction of unreadable images exceeds
        `max_unreadable`.
        """
        with ThreadPoolExecutor(max(1, threads)) as pool:
            results = list(pool.map(self._hash_if_readable, range(len(self))))
        broken = [item for item, result in enumerate(results) if isinstance(result, _Unreadable)]
        examples = ", ".join(f"{self.indices[item]} ({results[item]!s})" for item in broken[:4])
        self.check_unreadable(len(broken), max_unreadable, examples)
        if broken:
            more = ", …" if len(broken) > 4 else ""
            log.warning(
                "split '%s': %d of %d images cannot be read and are skipped: position %s%s",
                *(self.split, len(broken), len(self), examples, more),
            )
        kept = np.array([item for item, result in enumerate(results) if isinstance(result, bytes)], dtype=np.int64)
        return self.take(kept), [result for result in results if isinstance(result, bytes)]

    def hash_content(self) -> list[bytes]:
        """Return the content hash of every item, without decoding. Missing content hashes like empty content."""
        return [_hash(self._cell(item)) for item in range(len(self))]

    def _cell(self, item: int) -> Any:
        return self.rows[int(self.indices[item])][self.image_column]

    def _hash_if_readable(self, item: int) -> bytes | _Unreadable:
        cell = self._cell(item)
        try:
            _decode(cell)
        except _Unreadable as error:
            return error
        return _hash(cell)

    def check_unreadable(self, number: int, max_unreadable: float, examples: str = "") -> None:
        """Raise `DataError` if `number` unreadable images exceed the fraction `max_unreadable` of all images."""
        allowed = math.ceil(max_unreadable * len(self))
        if number > allowed:
            raise DataError(
                f"split '{self.split}': {number} of {len(self)} images cannot be read, but at most {allowed} may be "
                f"skipped{f' (position {examples})' if examples else ''}; repair the data or raise data.max_unreadable"
            )


class _Unreadable(Exception):  # noqa: N818  (a result of checking one image, not an error of the program)
    """Reason why one image cannot be decoded."""


def _decode(cell: Any) -> PILImage.Image:
    if isinstance(cell, PILImage.Image):
        return cell.convert("RGB")
    content = _image_content(cell)
    if not content:
        raise _Unreadable("empty")
    try:
        return PILImage.open(io.BytesIO(content) if isinstance(content, bytes) else content).convert("RGB")
    except Exception as error:  # a broken file can make Pillow's decoders raise any exception
        raise _Unreadable(str(error) or type(error).__name__) from error


def _image_content(cell: Any) -> bytes | str | None:
    """Return the bytes of an encoded image or the path of its file, or None if there is neither."""
    if isinstance(cell, Mapping):
        return cell.get("bytes") or cell.get("path")
    return cell if isinstance(cell, bytes | str) else None


def _hash(cell: Any) -> bytes:
    content = _image_content(cell)
    if isinstance(content, str):
        file = Path(content)
        content = file.read_bytes() if file.is_file() else None
    return hashlib.blake2b(content or b"", digest_size=16).digest()


def evaluation_transform(data_config: Mapping[str, Any]) -> Transform:
    """Return timm's evaluation transform for a data config: image -> normalised `[C, H, W]`."""
    transform: Transform = create_transform(**data_config, is_training=False)
    return transform
