"""Tiny split mined in shards; as a script, a run that is killed many times.

    python tiny_split.py FOLDER

Forks processes that mine into FOLDER/killed and kills each at a random moment. Every second process has a slow disk, so
that many kills hit a write. A last process finishes the run. Prints the work of every process as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import DATA_CONFIG, NAMES, rows

from pathprune.data import LabelledImages, evaluation_transform, read_split
from pathprune.mining import ClassStats, ShardFolder, locate_paths, mine_split, save_paths
from pathprune.models.adapt import adapt
from pathprune.models.seam import AdaptedModel

NUM_IMAGES, SHARD_SIZE, BATCH_SIZE = 119, 2, 2
NUM_KILLS = 25
NUM_SHARDS = -(-NUM_IMAGES // SHARD_SIZE)


def build_tiny_model() -> AdaptedModel:
    torch.manual_seed(0)
    args = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 12, "num_heads": 2, "num_classes": 3}
    return adapt(timm.create_model("vit_tiny_patch16_224", **args).eval())


def load_tiny_images(number: int = NUM_IMAGES, broken: tuple[int, ...] = ()) -> LabelledImages:
    """Return images of three classes in random order; the images at `broken` are unreadable."""
    images = read_split(lambda _: rows(range(number), broken=broken), "train")
    images = images.take(np.random.default_rng(0).permutation(number))
    return images.with_transform(evaluation_transform(DATA_CONFIG))


def open_shard_folder(folder: Path, adapted: AdaptedModel, key: str = "a key") -> ShardFolder:
    return ShardFolder(folder / "shards", key, {site.name: site.width for site in adapted.sites}, NAMES, {"nodes": 2})


def mine(folder: Path, adapted: AdaptedModel, images: LabelledImages, **options) -> ClassStats:
    """Mine a split, continuing a run that was stopped, and return the statistics."""
    shards = open_shard_folder(folder, adapted)
    shards.prepare()
    options = {
        "locate": partial(locate_paths, adapted, nodes=2),
        "shard_size": SHARD_SIZE,
        "batch_size": BATCH_SIZE,
    } | options
    num_shards = mine_split(adapted, images, shards, **options)
    save_paths(shards.read_paths(num_shards), folder / "paths.parquet")
    shards.save_sums(num_shards, folder / "stats.safetensors")
    return ClassStats.load(folder / "stats.safetensors")


def _mine_in_a_fork(folder: Path, adapted: AdaptedModel, images: LabelledImages, *, flush_time: float) -> int:
    """Start a process that mines into `folder`; return its id once mining begins."""
    start_reader, start_writer = os.pipe()
    process = os.fork()
    if process:
        os.close(start_writer)
        os.read(start_reader, 1)
        os.close(start_reader)
        return process
    # "<" at the beginning of each write, ">" at its end
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
    write, fsync = ShardFolder.write, os.fsync

    def slow_fsync(descriptor: int) -> None:
        time.sleep(flush_time)
        fsync(descriptor)

    def journal_write(self, number, shard) -> None:
        os.write(journal, b"<")
        write(self, number, shard)
        os.write(journal, b">")

    ShardFolder.write, os.fsync = journal_write, slow_fsync
    os.write(start_writer, b"!")
    mine(folder, adapted, images)
    os._exit(0)


def main(folder: Path) -> None:
    """Mine into `whole` without and into `killed` with interruptions."""
    torch.set_num_threads(1)
    adapted, images = build_tiny_model(), load_tiny_images()
    locate_paths(adapted, images[0][0][None])  # torch initialises lazily; do it once, before the forks
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    start = time.perf_counter()
    os.waitpid(_mine_in_a_fork(folder / "whole", adapted, images, flush_time=0), 0)
    shard_time = (time.perf_counter() - start) / NUM_SHARDS
    moments, kills, finished = random.Random(0), [], 0
    for kill in range(NUM_KILLS):
        flush_time = shard_time / 2 if kill % 2 else 0
        process = _mine_in_a_fork(folder / "killed", adapted, images, flush_time=flush_time)
        time.sleep(moments.uniform(0, 6 * shard_time))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        journal = (folder / "killed" / "journal").read_text()
        before, finished = finished, sum(1 for _ in (folder / "killed" / "shards").glob("*.safetensors"))
        kills.append({"mined": journal.count("<"), "finished": finished - before, "writing": journal.endswith("<")})
    _, status = os.waitpid(_mine_in_a_fork(folder / "killed", adapted, images, flush_time=0), 0)
    print(json.dumps({"kills": kills, "exit": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
