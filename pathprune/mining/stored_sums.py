"""Class statistics on the disk: written some classes at a time, read layer by layer, so that no memory need hold all.

The file is an ordinary safetensors file, sums in float32 (counts are exact up to 16,777,216 images of a class).
"""

# K classes, W neurons of a layer

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from safetensors import safe_open
from torch import Tensor

_DTYPES = {"num_images": ("I64", torch.int64)}
_SUMS = ("F32", torch.float32)


@dataclass(frozen=True)
class StoredSums(Sequence[Tensor]):
    """Tensors of a safetensors file, mapped when they are asked for and let go with the last reference to them.

    Raises `ValueError` where another file has taken its place since.
    """

    file: Path
    names: tuple[str, ...]
    stamp: tuple[int, int, int]

    @classmethod
    def of(cls, file: Path, names: Iterable[str]) -> StoredSums:
        return cls(file, tuple(names), _stamp(file))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> StoredSums: ...
    def __getitem__(self, index: int | slice) -> Tensor | StoredSums:
        if isinstance(index, slice):
            return StoredSums(self.file, self.names[index], self.stamp)
        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(self.names[index])
            if _stamp(self.file) != self.stamp:
                raise ValueError(f"{self.file} was replaced since its statistics were loaded; load them again")
        return tensor


def _stamp(file: Path) -> tuple[int, int, int]:
    """What differs between a file and one that took its place."""
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def write_sums(
    file: Path,
    *,
    shapes: Mapping[str, Sequence[int]],
    description: str,
    blocks: Iterable[tuple[int, Mapping[str, Tensor]]],
) -> None:
    """Write tensors whose first dimension is the class: `shapes` of all of them, and `blocks` of consecutive classes.

    A block is its first class and the tensors' rows from there on. Rows of which there is no block are zero.
    """
    header, starts = _header(shapes, description)
    row_bytes = {name: math.prod(shape[1:]) * _dtype(name)[1].itemsize for name, shape in shapes.items()}
    with file.open("wb") as stream:
        stream.write(header)
        stream.truncate(max(starts[name] + shape[0] * row_bytes[name] for name, shape in shapes.items()))
        for first_class, tensors in blocks:
            for name, rows in tensors.items():
                stream.seek(starts[name] + first_class * row_bytes[name])
                stream.write(rows.to(_dtype(name)[1]).numpy().tobytes())


def _dtype(name: str) -> tuple[str, torch.dtype]:
    return _DTYPES.get(name, _SUMS)


def _header(shapes: Mapping[str, Sequence[int]], description: str) -> tuple[bytes, dict[str, int]]:
    """What comes before the tensors in a safetensors file, and where in the file each of them begins."""
    entries: dict[str, object] = {"__metadata__": {"pathprune": description}}
    offsets, end = {}, 0
    for name, shape in shapes.items():
        code, dtype = _dtype(name)
        offsets[name], end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + offset for name, offset in offsets.items()}
