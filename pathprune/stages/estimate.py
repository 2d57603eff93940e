"""Estimate of mining's cost on this device: timed on noise, without touching the data or the run folder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from pathprune.mining import Tokens, locate_paths, resolve_nodes
from pathprune.models.adapt import adapt
from pathprune.models.loading import load_configured_model
from pathprune.recipe import Recipe
from pathprune.stages.mining import PRECISIONS, tokens_to_mine

WORKLOADS = {  # images; ImageNet-21k as released in 2011, with 21,841 classes
    "ImageNet-1k, 50 images per class": 50_000,
    "ImageNet-1k, all images": 1_281_167,
    "ImageNet-21k, 10 images per class": 218_410,
    "ImageNet-21k, all images": 14_197_122,
}
DEVICES = (1, 8, 64)
TURNS = 3  # timed batches per token setting, after a warm-up


@dataclass(frozen=True)
class Estimate:
    """Mining speed of one process, for each token setting that the recipe's criteria need."""

    rates: Mapping[Tokens, float]  # images a second
    setting: str  # model, nodes, batch size, precision and device, in words

    def seconds(self, num_images: int, *, devices: int = 1) -> float:
        """Return the seconds to mine `num_images` on `devices` like this one, which share the images evenly."""
        return sum(num_images / rate for rate in self.rates.values()) / devices

    def table(self, recipe: Recipe) -> dict[str, dict[int, float]]:
        """Return seconds by workload and number of devices; the recipe's own workload is included if it has a size."""
        number = recipe.mine.num_images
        own = {} if number is None else {f"this recipe: {number:,}": number}
        return {
            workload: {devices: self.seconds(images, devices=devices) for devices in DEVICES}
            for workload, images in (own | WORKLOADS).items()
        }


def estimate_recipe(recipe: Recipe) -> Estimate:
    """Time the recipe's mining on its model; a batch size of `auto` is taken as 16 images."""
    config, device = recipe.mine, Accelerator().device
    loaded = load_configured_model(recipe.model)
    adapted = adapt(loaded.model.to(device))
    batch_size = 16 if config.batch_size == "auto" else config.batch_size
    nodes = None if config.nodes == "auto" else config.nodes
    channels, height, width = loaded.data_config["input_size"]
    images = torch.randn(batch_size, channels, height, width, generator=torch.Generator().manual_seed(0)).to(device)

    def turn(tokens: Tokens) -> float:
        start = time.perf_counter()
        mined = locate_paths(
            adapted,
            images,
            method=config.method,
            rule=config.rule,
            nodes=nodes,
            first_nodes=config.first_nodes,
            top_k=config.top_k,
            tokens=tokens,
            dtype=PRECISIONS[config.precision],
        )
        mined.jas.cpu()  # wait for the device
        return time.perf_counter() - start

    wanted = tokens_to_mine(recipe)
    for tokens in wanted:
        turn(tokens)  # prepares what is used first
    times = [{tokens: turn(tokens) for tokens in wanted} for _ in range(TURNS)]
    rates = {tokens: batch_size / statistics.median(each[tokens] for each in times) for tokens in wanted}
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    numbers = " and ".join(dict.fromkeys(str(resolve_nodes(tokens, nodes)[0]) for tokens in wanted))
    size = f"{recipe.model.name} at {height} × {width} px, {numbers} nodes, batches of {batch_size}"
    return Estimate(rates, f"{size}, {'float32' if config.precision == 'no' else config.precision}, {where}")
