"""How much host memory the statistics of a mining run take: a whole run, of synthetic scores in place of a model's.

    python tests/benchmarks/memory.py [--classes 1000] [--layers 24 --width 4096] [--images-per-class 2 4] …

Shards are mined, summed, saved and scored as in a run; printed is by how much the peak of the resident memory grew,
files mapped into it included. Runs with other numbers of images follow in the same process: it grows no further.
"""

# B images, L layers, W neurons of a layer

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import DATA_CONFIG, rows

from pathprune.data import LabelledImages, evaluation_transform, read_split
from pathprune.mining import ClassStats, MinedPaths, ShardFolder, mine_split, save_paths
from pathprune.mining.mined_paths import normalize_rows
from pathprune.models.seam import NeuronSite
from pathprune.scoring import ScoringContext, parse_criterion, score

MIB = 2**20


def peak_memory() -> int:
    """The most bytes of this process that were resident so far."""
    status = Path("/proc/self/status")
    if status.exists():  # the process that started this one counts in what getrusage says
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def synthetic(images: Tensor, labels: Tensor, *, layers: int, width: int) -> MinedPaths:
    """Paths and scores as a model with `layers` of `width` neurons would give them."""
    generator = torch.Generator().manual_seed(int(labels[0]))
    scores_BLW = torch.rand(len(images), layers, width, generator=generator)
    return MinedPaths(
        paths=scores_BLW.argmax(2, keepdim=True),
        scores=scores_BLW,
        own=scores_BLW,
        mass=torch.stack([normalize_rows(scores_BW) for scores_BW in scores_BLW.unbind(1)], dim=1),
        jas=torch.zeros(len(images)),
        targets=labels,
        predictions=labels,
    )


def labelled_images(classes: int, per_class: int) -> LabelledImages:
    images = read_split(lambda _: rows(range(classes * per_class)), "train")
    images = images.with_transform(evaluation_transform(DATA_CONFIG))
    names = tuple(f"class {index}" for index in range(classes))
    return replace(images, labels=np.arange(classes * per_class) % classes, class_names=names)


def run(folder: Path, images: LabelledImages, options: argparse.Namespace) -> dict[str, float]:
    """Mine, sum, save and score; the growth of the peak so far, in MiB, after each."""
    sites = tuple(
        NeuronSite(f"blocks.{layer}.mlp.fc2", layer, nn.Linear(options.width, 1)) for layer in range(options.layers)
    )
    adapted: Any = SimpleNamespace(model=nn.Linear(1, 1), sites=sites)
    shards = ShardFolder(folder / "shards", "a key", {site.name: site.width for site in sites}, images.class_names)
    shards.prepare()
    before, grown = peak_memory(), {}

    def locate(batch: Tensor, labels: Tensor) -> MinedPaths:
        return synthetic(batch, labels, layers=options.layers, width=options.width)

    num_shards = mine_split(
        adapted, images, shards, locate=locate, shard_size=options.shard_size, batch_size=options.batch_size
    )
    grown["mined"] = (peak_memory() - before) / MIB
    shards.save_sums(num_shards, folder / "stats.safetensors")
    save_paths(shards.read_paths(num_shards), folder / "paths.parquet")
    shards.remove()
    grown["saved"] = (peak_memory() - before) / MIB
    context = ScoringContext(adapted, mined={"all": ClassStats.load(folder / "stats.safetensors")})
    for settings in ({}, {"importance": "count", "reduce": "max"}):
        score(context, criterion=parse_criterion({"name": "path", **settings}))
    grown["scored"] = (peak_memory() - before) / MIB
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=4096, help="neurons of a layer; default: a ViT-L's")
    parser.add_argument("--images-per-class", type=int, nargs="+", default=[2, 4], help="one run for each")
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--folder", help="where to keep the run's files while it runs; default: the system's")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    options = parser.parse_args()
    measured = []
    for per_class in options.images_per_class:
        images = labelled_images(options.classes, per_class)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            start = time.perf_counter()
            grown = run(Path(folder), images, options)
            size = (Path(folder) / "stats.safetensors").stat().st_size / MIB
        measured.append({"images": len(images), **grown, "file": size, "seconds": time.perf_counter() - start})
    if options.json:
        print(json.dumps(measured))
        return
    dense = options.classes * options.layers * options.width * 3 * 8 / MIB
    print(f"{options.classes:,} classes, {options.layers} layers of {options.width:,} neurons")
    print(f"three sums in float64 for each: {dense:,.0f} MiB\n")
    print(f"{'':10}{'growth of the peak of resident memory by the end of':>66}")
    print(f"{'images':>10}{'mining':>22}{'summing':>22}{'scoring':>22}{'file':>14}{'seconds':>10}")
    for row in measured:
        columns = "".join(f"{row[stage]:18,.0f} MiB" for stage in ("mined", "saved", "scored"))
        print(f"{row['images']:10,}{columns}{row['file']:10,.0f} MiB{row['seconds']:10.0f}")


if __name__ == "__main__":
    main()
