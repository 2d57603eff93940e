"""A tiny split mined in shards; run as a script, it is killed again and again while it mines.

    python tiny_split.py FOLDER

forks processes that mine into FOLDER/killed, kills each at a random moment (every second one has a slow disk, so that
many of these moments fall into a write) and lets a last one finish. Prints what every process did as JSON.
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


def tiny_model() -> AdaptedModel:
    torch.manual_seed(0)
    args = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 12, "num_heads": 2, "num_classes": 3}
    return adapt(timm.create_model("vit_tiny_patch16_224", **args).eval())


def tiny_images(number: int = NUM_IMAGES, broken: tuple[int, ...] = ()) -> LabelledImages:
    """Images of three classes, in no order, some of them unreadable."""
    images = read_split(lambda _: rows(range(number), broken=broken), "train")
    images = images.take(np.random.default_rng(0).permutation(number))
    return images.with_transform(evaluation_transform(DATA_CONFIG))


def shard_folder(folder: Path, adapted: AdaptedModel, key: str = "a key") -> ShardFolder:
    return ShardFolder(folder / "shards", key, {site.name: site.width for site in adapted.sites}, NAMES, {"nodes": 2})


def mine(folder: Path, adapted: AdaptedModel, images: LabelledImages, **options) -> ClassStats:
    """Everything from the beginning, or from where an earlier call was stopped."""
    shards = shard_folder(folder, adapted)
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
    """Start a process that mines into `folder`; returns its id once it has begun."""
    begun, begin = os.pipe()
    process = os.fork()
    if process:
        os.close(begin)
        os.read(begun, 1)
        os.close(begun)
        return process
    written = os.open(folder / "written", os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
    write, fsync = ShardFolder.write, os.fsync

    def slow_fsync(descriptor: int) -> None:
        time.sleep(flush_time)
        fsync(descriptor)

    def logged_write(self, number, shard) -> None:
        os.write(written, b"<")
        write(self, number, shard)
        os.write(written, b">")

    ShardFolder.write, os.fsync = logged_write, slow_fsync
    os.write(begin, b"!")
    mine(folder, adapted, images)
    os._exit(0)


def main(folder: Path) -> None:
    """Mine `whole` at once and `killed` with interruptions."""
    torch.set_num_threads(1)
    adapted, images = tiny_model(), tiny_images()
    locate_paths(adapted, images[0][0][None])  # what torch prepares on first use is then there in every fork
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
        written = (folder / "killed" / "written").read_text()
        before, finished = finished, sum(1 for _ in (folder / "killed" / "shards").glob("*.safetensors"))
        kills.append({"mined": written.count("<"), "finished": finished - before, "writing": written.endswith("<")})
    _, status = os.waitpid(_mine_in_a_fork(folder / "killed", adapted, images, flush_time=0), 0)
    print(json.dumps({"kills": kills, "exit": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
