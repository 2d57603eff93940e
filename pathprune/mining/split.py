"""Mining of a whole split: shard by shard, by one or several processes, resumable after a kill."""

# S images of a shard, B images of a batch

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from accelerate.utils import find_executable_batch_size
from numpy.typing import NDArray
from torch import Tensor

from pathprune.data import SKIPPED, LabelledImages, load_batches
from pathprune.mining.class_stats import ClassStats
from pathprune.mining.mined_paths import MinedPaths
from pathprune.mining.path_set import PathSet
from pathprune.mining.shards import Shard, ShardFolder
from pathprune.models.adapt import find_device
from pathprune.models.seam import AdaptedModel

log = logging.getLogger(__name__)

Locate = Callable[[Tensor, Tensor], MinedPaths]
"""Images `[B, C, H, W]` on the model's device and labels `[B]` -> mined paths."""


@dataclass(frozen=True)
class _Batch:
    """Readable images on the model's device, with labels and positions in the split on the CPU."""

    images: Tensor  # [B, C, H, W]
    labels_B: Tensor
    indices_B: Tensor


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
    """Mine this process's unfinished shards into `shards`; return the number of shards of all processes.

    - shard_size: images per shard. Together with `batch_size`, the size fixes the result bit by bit, for any number of
      processes and interruptions.
    - batch_size: images mined together within a shard. `auto`: the largest that fits into memory, starting from
      `shard_size` and halved until it fits.
    - process, num_processes: shards are dealt to processes in turn. One process must have called `shards.prepare()`.
    - on_progress: receives the number of finished images, other processes included.
    """
    split = split_into_shards(images, shard_size)
    own_shards = range(process, len(split), num_processes)

    def mine_missing(batch_size: int) -> None:
        missing = [number for number in own_shards if not shards.verify(number)]
        batches = {number: _split_evenly(split[number], batch_size) for number in missing}
        loaded = iter(load_batches(images, [batch for number in missing for batch in batches[number]], num_workers))
        for number in missing:
            num_done = shards.count_finished() * shard_size
            tracked = _report_progress(islice(loaded, len(batches[number])), num_done, on_progress)
            indices = [torch.from_numpy(images.indices[batch]) for batch in batches[number]]
            readable = _drop_unreadable(adapted, zip(tracked, indices, strict=True))
            shards.write(number, _mine_shard(shards, images.labels[split[number]], readable, locate))

    if batch_size != "auto":
        mine_missing(batch_size)
        return len(split)

    fitting_size = shard_size

    def halve_batch_size() -> int:
        nonlocal fitting_size
        fitting_size //= 2
        log.info("out of memory; retrying with batches of %d images", fitting_size)
        return fitting_size

    find_executable_batch_size(mine_missing, starting_batch_size=shard_size, reduce_batch_size_fn=halve_batch_size)()
    return len(split)


def split_into_shards(images: LabelledImages, shard_size: int) -> list[NDArray[np.int64]]:
    """Return the positions of every shard's images. Images are sorted by class, for shards with few classes each."""
    return _split_evenly(np.argsort(images.labels, kind="stable"), shard_size)


def _split_evenly(positions: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _report_progress(
    batches: Iterable[tuple[Tensor, Tensor]], num_done: int, on_progress: Callable[[int], None] | None
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield the batches; after each, report the number of images done, counted from `num_done`."""
    for images, labels in batches:
        yield images, labels
        num_done += len(labels)
        if on_progress is not None:
            on_progress(num_done)


def _drop_unreadable(
    adapted: AdaptedModel, batches: Iterable[tuple[tuple[Tensor, Tensor], Tensor]]
) -> Iterable[_Batch]:
    """Yield the readable images of every batch of `(images, labels)` and indices; skip batches without any."""
    device = find_device(adapted.model)
    for (images, labels_B), indices_B in batches:
        is_readable_B = labels_B != SKIPPED
        images = images.to(device, non_blocking=True)
        if is_readable_B.any():
            yield _Batch(images[is_readable_B.to(device)], labels_B[is_readable_B], indices_B[is_readable_B])


def _mine_shard(shards: ShardFolder, labels_S: NDArray[np.int64], batches: Iterable[_Batch], locate: Locate) -> Shard:
    classes = torch.from_numpy(np.unique(labels_S))
    names = [shards.class_names[index] for index in classes.tolist()]
    stats = ClassStats.empty(shards.widths, names, shards.settings)
    parts = []
    for batch in batches:
        mined = locate(batch.images, batch.labels_B)
        stats.update(mined, torch.searchsorted(classes, batch.labels_B))
        parts.append(
            PathSet.of(
                mined,
                indices=batch.indices_B,
                labels=batch.labels_B,
                site_names=stats.site_names,
                class_names=shards.class_names,
                settings=shards.settings,
            )
        )
    empty = PathSet.empty(shards.widths, shards.class_names, shards.settings)
    return Shard(classes, stats, PathSet.concat(parts or [empty]))
