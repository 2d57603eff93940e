"""Class statistics on disk: written by blocks of classes, read layer by layer, never all in memory.

The file is an ordinary safetensors file with float32 sums. Counts are exact up to 16,777,216 images per class.
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
_SUM_DTYPE = ("F32", torch.float32)


@dataclass(frozen=True)
class StoredSums(Sequence[Tensor]):
    """Tensors of a safetensors file, each memory-mapped on access and released with its last reference.

    Indexing raises `ValueError` if another file has replaced the file since `open`.
    """

    file: Path
    names: tuple[str, ...]
    stamp: tuple[int, ...]

    @classmethod
    def open(cls, file: Path, names: Iterable[str]) -> StoredSums:
        """Return the tensors called `names`, in order, without reading any of them."""
        return cls(file, tuple(names), _file_stamp(file))

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
            if _file_stamp(self.file) != self.stamp:
                raise ValueError(f"{self.file} was replaced since its statistics were loaded; load them again")
        return tensor


def _file_stamp(file: Path) -> tuple[int, ...]:
    """Return inode, size and modification time: different for a file that replaces another one."""
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def write_sums(
    file: Path,
    *,
    shapes: Mapping[str, Sequence[int]],
    description: str,
    blocks: Iterable[tuple[int, Mapping[str, Tensor]]],
) -> None:
    """Write tensors whose first dimension is the class, one block of consecutive classes at a time.

    - shapes: the full shape of every tensor, by name.
    - description: the file's metadata entry under `pathprune`.
    - blocks: the first class of each block, and the tensors' rows from that class on. Rows without a block are zero.
    """
    header, starts = _build_header(shapes, description)
    row_bytes = {name: math.prod(shape[1:]) * _dtype(name)[1].itemsize for name, shape in shapes.items()}
    with file.open("wb") as stream:
        stream.write(header)
        stream.truncate(max(starts[name] + shape[0] * row_bytes[name] for name, shape in shapes.items()))
        for first_class, tensors in blocks:
            for name, rows in tensors.items():
                stream.seek(starts[name] + first_class * row_bytes[name])
                stream.write(rows.to(_dtype(name)[1]).numpy().tobytes())


def _dtype(name: str) -> tuple[str, torch.dtype]:
    return _DTYPES.get(name, _SUM_DTYPE)


def _build_header(shapes: Mapping[str, Sequence[int]], description: str) -> tuple[bytes, dict[str, int]]:
    """Return the header of a safetensors file, and the byte offset in the file where each tensor begins."""
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
