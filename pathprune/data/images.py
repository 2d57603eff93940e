"""Labelled images of one split, decoded when an item is asked for, at a model's own size and normalisation."""

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

SKIPPED = -1  # label of a row whose image could not be read: it is left out of every count
UNLABELLED = -2  # label of an image that has none
Transform = Callable[[PILImage.Image], Tensor]


class DataError(ValueError):
    """The data cannot be read as asked."""


@dataclass(frozen=True)
class LabelledImages(TorchDataset[tuple[Tensor, int]]):
    """Images and labels of one split; item `i` is `(image [C, H, W], label)`, or zeros and `SKIPPED` if unreadable."""

    split: str
    rows: Dataset
    indices: NDArray[np.int64]  # positions in the split of the source, in the order of the items
    image_column: str
    labels: NDArray[np.int64]  # aligned with `indices`
    class_names: tuple[str, ...]
    transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        assert self.transform is not None, "set a transform with `with_transform` before reading items"
        try:
            image = _decode(self._cell(item))
        except _Unreadable:
            return torch.zeros_like(self.transform(PILImage.new("RGB", (8, 8)))), SKIPPED
        return self.transform(image), int(self.labels[item])

    def picture(self, item: int) -> PILImage.Image:
        """One readable image as it is in the source, in RGB."""
        return _decode(self._cell(item))

    @property
    def is_labelled(self) -> bool:
        return not (self.labels == UNLABELLED).any()

    @property
    def source_key(self) -> str:
        """Stands for the content of the source, which is not read for it: another file, date or size gives another."""
        return str(self.rows._fingerprint)

    def with_transform(self, transform: Transform) -> LabelledImages:
        return replace(self, transform=transform)

    def take(self, items: NDArray[np.integer[Any]]) -> LabelledImages:
        """Return the subset made of these items, in this order."""
        return replace(self, indices=self.indices[items], labels=self.labels[items])

    def renamed(self, class_names: Sequence[str]) -> LabelledImages:
        """Return the same images with labels numbered as `class_names` are; every class must be among them."""
        number = np.array([list(class_names).index(name) for name in self.class_names])
        is_class = (self.labels >= 0) & (self.labels < len(number))  # others are not for this to judge
        labels = np.where(is_class, number[np.where(is_class, self.labels, 0)], self.labels)
        return replace(self, class_names=tuple(class_names), labels=labels)

    def readable(self, *, max_unreadable: float, threads: int = 1) -> tuple[LabelledImages, list[bytes]]:
        """Decode every image once; returns those that can be read, and a hash of the content of each.

        Raises `DataError` if more than the share `max_unreadable` cannot be read; fewer are logged by position.
        """
        with ThreadPoolExecutor(max(1, threads)) as pool:
            found = list(pool.map(self._inspect, range(len(self))))
        broken = [item for item, digest in enumerate(found) if not isinstance(digest, bytes)]
        shown = ", ".join(f"{self.indices[item]} ({found[item]!s})" for item in broken[:4])
        self.check_unreadable(len(broken), max_unreadable, shown)
        if broken:
            more = ", …" if len(broken) > 4 else ""
            log.warning(
                "split '%s': %d of %d images are skipped: %s%s", self.split, len(broken), len(self), shown, more
            )
        kept = np.array([item for item in range(len(self)) if isinstance(found[item], bytes)], dtype=np.int64)
        return self.take(kept), [digest for digest in found if isinstance(digest, bytes)]

    def content_hashes(self) -> list[bytes]:
        """Hash of each item's content, nothing decoded; an unreadable item's hash is of nothing."""
        return [_hash(self._cell(item)) for item in range(len(self))]

    def _cell(self, item: int) -> Any:
        return self.rows[int(self.indices[item])][self.image_column]

    def _inspect(self, item: int) -> bytes | _Unreadable:
        cell = self._cell(item)
        try:
            _decode(cell)
        except _Unreadable as reason:
            return reason
        return _hash(cell)

    def check_unreadable(self, number: int, max_unreadable: float, shown: str = "") -> None:
        """Raise `DataError` if more than the share `max_unreadable` of the images, `number` of them, is unreadable."""
        allowed = math.ceil(max_unreadable * len(self))
        if number > allowed:
            raise DataError(
                f"split '{self.split}': {number} of {len(self)} images cannot be read, {allowed} may be skipped"
                f"{f' (position {shown})' if shown else ''}; repair the data or raise data.max_unreadable"
            )


class _Unreadable(Exception):  # noqa: N818  (it is what is found, not an error of the program)
    """Why one image cannot be decoded."""


def _decode(cell: Any) -> PILImage.Image:
    if isinstance(cell, PILImage.Image):
        return cell.convert("RGB")
    content = _encoded(cell)
    if not content:
        raise _Unreadable("empty")
    try:
        return PILImage.open(io.BytesIO(content) if isinstance(content, bytes) else content).convert("RGB")
    except Exception as error:  # Pillow raises whatever a broken file leads its decoders to
        raise _Unreadable(str(error) or type(error).__name__) from error


def _encoded(cell: Any) -> bytes | str | None:
    """The bytes of an encoded image, or the path of its file."""
    if isinstance(cell, Mapping):
        return cell.get("bytes") or cell.get("path")
    return cell if isinstance(cell, bytes | str) else None


def _hash(cell: Any) -> bytes:
    content = _encoded(cell)
    if isinstance(content, str):
        file = Path(content)
        content = file.read_bytes() if file.is_file() else None
    return hashlib.blake2b(content or b"", digest_size=16).digest()


def evaluation_transform(data_config: Mapping[str, Any]) -> Transform:
    """Timm's evaluation transform for a model's data config: image -> normalised `[C, H, W]`."""
    transform: Transform = create_transform(**data_config, is_training=False)
    return transform
