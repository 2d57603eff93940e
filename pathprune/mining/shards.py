"""Shards: finished parts of a mining run, one file per fixed number of images, from which a killed run continues.

A shard's file is written atomically. It carries the schema version, the key of its inputs (model, images, settings) and
a checksum. A shard that fails a check is reported, deleted and mined again.

<folder>/00000.safetensors    `num_images`, `mass.<site>`, `published-mass.<site>` (float32) of the classes that occur
                              (`classes`), and `indices`, `labels`, `predictions`, `targets`, `jas`, `paths`; counts
                              follow from the paths
"""

# C classes that occur in a shard, W neurons of a layer

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pathprune.files import write_atomically
from pathprune.mining.choices import STATISTICS
from pathprune.mining.class_stats import ClassStats, add_counts, save_stats
from pathprune.mining.path_set import PathSet
from pathprune.mining.records import Settings

SCHEMA_VERSION = 2
BLOCK_BYTES = 2**26  # memory for the sums of one block of classes

log = logging.getLogger(__name__)


class ShardError(ValueError):
    """Shard file that is missing, damaged or of another run."""


@dataclass(frozen=True)
class Shard:
    """Paths of a shard's images, and the statistics of the classes that occur among the images."""

    classes: Tensor  # int64 [C], ascending
    stats: ClassStats  # row i is class classes[i]
    paths: PathSet


@dataclass(frozen=True)
class ShardFolder:
    """Shards of one mining run.

    - key: identifies all inputs of the run; equal keys mean equal results.
    - widths: the number of neurons of every site, by site name, in the order of the layers.
    """

    path: Path
    key: str
    widths: Mapping[str, int]
    class_names: Sequence[str]
    settings: Settings = field(default_factory=dict)

    def file(self, number: int) -> Path:
        """Return the file of a shard, by the shard's number."""
        return self.path / f"{number:05d}.safetensors"

    def prepare(self) -> None:
        """Create the folder; delete unfinished files of a killed process and shards of other inputs.

        One process calls `prepare` before any process mines.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for unfinished in self.path.glob(".*"):  # of this package, and temporary files of safetensors
            unfinished.unlink()
        foreign = [file for file in sorted(self.path.glob("*.safetensors")) if not self._has_key(file)]
        for file in foreign:
            file.unlink()
        if foreign:
            log.warning(
                "deleted %d shards in %s that were mined from another model, other images or settings (%s …)",
                *(len(foreign), self.path, foreign[0].name),
            )

    def count_finished(self) -> int:
        """Count the shards in the folder without reading them."""
        return sum(1 for _ in self.path.glob("*.safetensors"))

    def verify(self, number: int) -> bool:
        """Delete the shard if it is damaged, with a warning; return whether an intact shard exists."""
        if not self.file(number).exists():
            return False
        try:
            self.read(number)
        except ShardError as error:
            log.warning("%s; mining its images again", error)
            self.file(number).unlink()
            return False
        return True

    def write(self, number: int, shard: Shard) -> None:
        """Write a finished shard atomically."""
        tensors = {"classes": shard.classes, **shard.paths.to_tensors()}
        for name, sums in shard.stats.to_tensors().items():
            if not name.startswith("count."):
                tensors[name] = sums if name == "num_images" else sums.float()
        metadata = {"schema": str(SCHEMA_VERSION), "key": self.key, "checksum": _compute_checksum(tensors, self.key)}
        with write_atomically(self.file(number)) as part:
            save_file(tensors, part, metadata)

    def read(self, number: int) -> Shard:
        """Read a shard. Raises `ShardError` unless the file is intact and was written under this key."""
        file = self.file(number)
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise ShardError(f"shard {file} is missing, truncated or not a shard ({error})") from error
        if metadata.get("schema") != str(SCHEMA_VERSION) or metadata.get("key") != self.key:
            raise ShardError(f"shard {file} was mined from another model, other images or settings")
        if metadata.get("checksum") != _compute_checksum(tensors, self.key):
            raise ShardError(f"shard {file} is damaged: its checksum does not match its content")
        sites, classes = tuple(self.widths), tensors["classes"]
        paths = PathSet.from_tensors(tensors, sites, self.class_names, self.settings)
        count = tuple(torch.zeros(len(classes), width) for width in self.widths.values())
        add_counts(count, paths.paths, torch.searchsorted(classes, paths.labels))
        stats = ClassStats(
            site_names=sites,
            class_names=tuple(self.class_names[index] for index in classes.tolist()),
            num_images=tensors["num_images"],
            count=count,
            mass=tuple(tensors[f"mass.{site}"] for site in sites),
            published_mass=tuple(tensors[f"published-mass.{site}"] for site in sites),
            settings=self.settings,
        )
        return Shard(classes, stats, paths)

    def save_sums(self, num_shards: int, file: Path) -> None:
        """Write the class statistics of all shards to one file, in the format of `ClassStats.save`.

        Shards are added in order, one in memory at a time, together with the sums of as many classes as fit into
        `BLOCK_BYTES`. Raises `ShardError` for a missing or damaged shard.
        """
        save_stats(
            self._sum_blocks(num_shards), file, widths=self.widths, class_names=self.class_names, settings=self.settings
        )

    def _sum_blocks(self, num_shards: int) -> Iterator[tuple[int, ClassStats]]:
        """Yield the sums of consecutive classes over all shards, each block with its first class."""
        size = max(1, BLOCK_BYTES // (len(STATISTICS) * 8 * sum(self.widths.values())))
        first, block = 0, self._empty_block(0, size)
        for number in range(num_shards):
            shard = self.read(number)
            for start in sorted({index // size * size for index in shard.classes.tolist()}):
                assert start >= first, "the classes of shards ascend"
                if start > first:
                    yield first, block
                    first, block = start, self._empty_block(start, size)
                in_block = (start <= shard.classes) & (shard.classes < start + size)
                block.add_classes(shard.classes[in_block] - start, shard.stats.select_classes(in_block))
        yield first, block

    def _empty_block(self, start: int, size: int) -> ClassStats:
        return ClassStats.empty(self.widths, self.class_names[start : start + size], self.settings)

    def read_paths(self, num_shards: int) -> Iterator[PathSet]:
        """Yield the paths of all shards that have any, in order. Raises `ShardError` for a missing or damaged shard."""
        for number in range(num_shards):
            shard = self.read(number)
            if len(shard.paths):
                yield shard.paths

    def remove(self) -> None:
        """Delete the folder, after the merged results are stored."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _has_key(self, file: Path) -> bool:
        """Return whether the file claims this run's key. `read` checks the content and reports unreadable files."""
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
        except (SafetensorError, OSError):
            return True
        return metadata.get("key") == self.key


def _compute_checksum(tensors: Mapping[str, Tensor], key: str) -> str:
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
