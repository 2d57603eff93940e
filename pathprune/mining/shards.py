"""Shards: what a mining run has finished, one file per fixed number of images, so that a killed run goes on from there.

A shard is on the disk whole or not at all. It carries the schema version, the key of what it was mined from (model,
images, settings) and a checksum of its content; one that does not hold what it should is named, and mined again.

<folder>/00000.safetensors    `num_images`, `mass.<site>`, `published-mass.<site>` (float32) of the classes that occur
                              (`classes`), and `indices`, `labels`, `predictions`, `targets`, `jas`, `paths`, which
                              the counts follow from
"""

# C classes that occur in a shard, W_l neurons of layer l

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
from pathprune.mining.class_stats import KINDS, ClassStats, add_counts, save_stats
from pathprune.mining.paths import PathSet
from pathprune.mining.records import Settings

SCHEMA_VERSION = 2
BLOCK_BYTES = 2**26  # of the sums that are in memory at once when shards are added up

log = logging.getLogger(__name__)


class ShardError(ValueError):
    """A shard's file does not hold what this run would have written there."""


@dataclass(frozen=True)
class Shard:
    """The paths of a shard's images, and their statistics for those classes alone that occur among them."""

    classes: Tensor  # int64 [C], ascending
    stats: ClassStats  # row i of its [C, W_l] is of class classes[i]
    paths: PathSet


@dataclass(frozen=True)
class ShardFolder:
    """The shards of one mining run. `key` stands for all that the result depends on; equal keys, equal results.

    `widths` maps every site's name to its number of neurons, in the order of the layers.
    """

    path: Path
    key: str
    widths: Mapping[str, int]
    class_names: Sequence[str]
    settings: Settings = field(default_factory=dict)

    def file(self, number: int) -> Path:
        return self.path / f"{number:05d}.safetensors"

    def prepare(self) -> None:
        """Make the folder, and remove what a killed process was writing and what other inputs gave.

        For one process to call, before any other begins.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for unfinished in self.path.glob(".*"):  # ours, and the temporary files of safetensors
            unfinished.unlink()
        foreign = [file for file in sorted(self.path.glob("*.safetensors")) if not self._is_ours(file)]
        for file in foreign:
            file.unlink()
        if foreign:
            log.warning(
                "%d of the shards in %s were not mined from this model, these images and settings (%s …): removed",
                *(len(foreign), self.path, foreign[0].name),
            )

    def num_finished(self) -> int:
        """How many shards are there, unread."""
        return sum(1 for _ in self.path.glob("*.safetensors"))

    def is_finished(self, number: int) -> bool:
        """Whether the shard is there and sound; one that is not sound is named and removed."""
        if not self.file(number).exists():
            return False
        try:
            self.read(number)
        except ShardError as error:
            log.warning("%s; its images are mined again", error)
            self.file(number).unlink()
            return False
        return True

    def write(self, number: int, shard: Shard) -> None:
        """Store a finished shard, all or nothing."""
        tensors = {"classes": shard.classes, **shard.paths.tensors()}
        for name, sums in shard.stats.tensors().items():
            if not name.startswith("count."):
                tensors[name] = sums if name == "num_images" else sums.float()
        about = {"schema": str(SCHEMA_VERSION), "key": self.key, "checksum": _checksum(tensors, self.key)}
        with write_atomically(self.file(number)) as part:
            save_file(tensors, part, about)

    def read(self, number: int) -> Shard:
        """Read a shard; raises `ShardError` unless it is exactly what `write` stored under this key."""
        file = self.file(number)
        try:
            with safe_open(file, framework="pt") as opened:
                about = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise ShardError(f"shard {file} is truncated or no shard ({error})") from error
        if about.get("schema") != str(SCHEMA_VERSION) or about.get("key") != self.key:
            raise ShardError(f"shard {file} was mined from another model, other images or settings")
        if about.get("checksum") != _checksum(tensors, self.key):
            raise ShardError(f"shard {file} was altered: its checksum does not fit its content")
        sites, classes = tuple(self.widths), tensors["classes"]
        paths = PathSet.of_tensors(tensors, sites, self.class_names, self.settings)
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
        """Write the statistics of all shards, summed in their order, as `ClassStats.save` does.

        One shard is in memory at a time, and of the sums those of as many classes as fit into `BLOCK_BYTES`. Raises
        `ShardError` where a shard is missing or unsound.
        """
        save_stats(
            self._sums(num_shards), file, widths=self.widths, class_names=self.class_names, settings=self.settings
        )

    def _sums(self, num_shards: int) -> Iterator[tuple[int, ClassStats]]:
        """The sums of the classes of all shards in blocks, each with its first class."""
        size = max(1, BLOCK_BYTES // (len(KINDS) * 8 * sum(self.widths.values())))
        first, block = 0, self._empty(0, size)
        for number in range(num_shards):
            shard = self.read(number)
            for start in sorted({index // size * size for index in shard.classes.tolist()}):
                assert start >= first, "shards are of ascending classes"
                if start > first:
                    yield first, block
                    first, block = start, self._empty(start, size)
                inside = (start <= shard.classes) & (shard.classes < start + size)
                block.add_classes(shard.classes[inside] - start, shard.stats.of_classes(inside))
        yield first, block

    def _empty(self, start: int, size: int) -> ClassStats:
        return ClassStats.empty(self.widths, self.class_names[start : start + size], self.settings)

    def paths(self, num_shards: int) -> Iterator[PathSet]:
        """The paths of all shards that have any, in their order; raises as `sum` does."""
        for number in range(num_shards):
            shard = self.read(number)
            if len(shard.paths):
                yield shard.paths

    def remove(self) -> None:
        """Remove the shards, once what they were merged into is stored."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _is_ours(self, file: Path) -> bool:
        """Whether the file claims this key; content is checked by `read`, and a broken file is named there."""
        try:
            with safe_open(file, framework="pt") as opened:
                about = opened.metadata() or {}
        except (SafetensorError, OSError):
            return True
        return about.get("key") == self.key


def _checksum(tensors: Mapping[str, Tensor], key: str) -> str:
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
