"""Mine a whole split: shard by shard, by one process or several, on from where an earlier run was stopped."""

# S images of a shard, B images of a batch

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Literal

import numpy as np
import torch
from accelerate.utils import find_executable_batch_size
from numpy.typing import NDArray
from torch import Tensor

from pathprune.data import SKIPPED, LabelledImages, load_batches
from pathprune.mining.class_stats import ClassStats
from pathprune.mining.paths import MinedPaths, PathSet
from pathprune.mining.shards import Shard, ShardFolder
from pathprune.models.adapt import model_device
from pathprune.models.seam import AdaptedModel

log = logging.getLogger(__name__)

Locate = Callable[[Tensor, Tensor], MinedPaths]
"""Images `[B, C, H, W]` on the model's device and labels `[B]` -> their paths."""


def mine_split(
    adapted: AdaptedModel,
    images: LabelledImages,
    shards: ShardFolder,
    *,
    locate: Locate,
    shard_size: int,
    batch_size: int | Literal["auto"],
    process: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Mine those of this process's shards that are not finished yet; returns the number of shards of all processes.

    - shard_size: images per shard; with `batch_size` it fixes the result bit by bit, however many processes there are
      and however often they are stopped.
    - batch_size: images mined together, within a shard; `auto` is the largest that fits into memory, from `shard_size`
      down by halves.
    - process, num_processes: shards are dealt out in turn. `shards.prepare()` was called before by one of them.
    - on_progress: told how many images are done, those of the other processes included.
    """
    split = shard_positions(images, shard_size)
    mine = range(process, len(split), num_processes)

    def mine_missing(batch_size: int) -> None:
        missing = [number for number in mine if not shards.is_finished(number)]
        batches = {number: _chunks(split[number], batch_size) for number in missing}
        loaded = iter(load_batches(images, [batch for number in missing for batch in batches[number]], num_workers))
        for number in missing:
            done = shards.num_finished() * shard_size
            tracked = _tracked(islice(loaded, len(batches[number])), done, on_progress)
            labels_S = images.labels[split[number]]
            indices = [torch.from_numpy(images.indices[batch]) for batch in batches[number]]
            usable = _usable(adapted, zip(tracked, indices, strict=True))
            shards.write(number, _mine_shard(shards, labels_S, usable, locate))

    if batch_size != "auto":
        mine_missing(batch_size)
        return len(split)

    fitting = shard_size

    def halved() -> int:
        nonlocal fitting
        fitting //= 2
        log.info("out of memory: mining %d images at once instead", fitting)
        return fitting

    find_executable_batch_size(mine_missing, starting_batch_size=shard_size, reduce_batch_size_fn=halved)()
    return len(split)


def shard_positions(images: LabelledImages, shard_size: int) -> list[NDArray[np.int64]]:
    """The items of every shard: class by class, so that a shard holds the statistics of few classes."""
    return _chunks(np.argsort(images.labels, kind="stable"), shard_size)


def _chunks(positions: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _tracked(
    batches: Iterable[tuple[Tensor, Tensor]], done: int, on_progress: Callable[[int], None] | None
) -> Iterable[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield images, labels
        done += len(labels)
        if on_progress is not None:
            on_progress(done)


def _usable(
    adapted: AdaptedModel, batches: Iterable[tuple[tuple[Tensor, Tensor], Tensor]]
) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Images on the model's device, labels and indices, without images that are unreadable."""
    device = model_device(adapted.model)
    for (images, labels), indices in batches:
        kept = labels != SKIPPED
        images = images.to(device, non_blocking=True)
        if kept.any():
            yield images[kept.to(device)], labels[kept], indices[kept]


def _mine_shard(
    shards: ShardFolder, labels_S: NDArray[np.int64], batches: Iterable[tuple[Tensor, Tensor, Tensor]], locate: Locate
) -> Shard:
    classes = torch.from_numpy(np.unique(labels_S))
    names = [shards.class_names[index] for index in classes.tolist()]
    stats = ClassStats.empty(shards.widths, names, shards.settings)
    parts = []
    for images, labels, indices in batches:
        mined = locate(images, labels)
        stats.update(mined, torch.searchsorted(classes, labels))
        parts.append(
            PathSet.of(
                mined,
                indices=indices,
                labels=labels,
                site_names=stats.site_names,
                class_names=shards.class_names,
                settings=shards.settings,
            )
        )
    return Shard(
        classes, stats, PathSet.concat(parts or [PathSet.empty(shards.widths, shards.class_names, shards.settings)])
    )
