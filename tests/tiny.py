"""Small images, models and recipes for tests of the whole pipeline."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import timm
import torch
from PIL import Image

from pathprune.models.checkpoint import save_pruned
from pathprune.recipe import Recipe, parse_recipe

NAMES = ["cat", "dog", "owl"]
DATA_CONFIG = {
    "input_size": (3, 8, 8),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def encoded(seed: int, label: int, *, broken: bool = False) -> dict[str, object]:
    """A noisy 8 × 8 px image whose brightest channel is its label, as PNG bytes."""
    pixels = np.random.default_rng(seed).integers(0, 120, (8, 8, 3), dtype=np.uint8)
    pixels[:, :, label] += 120
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue()[:-40] if broken else stream.getvalue(), "path": None}


def rows(seeds: Iterable[int], *, broken: Collection[int] = ()) -> datasets.Dataset:
    """One image per seed, labelled seed mod 3. Those at the positions `broken` cannot be decoded."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    cells = [(encoded(seed, seed % 3, broken=place in broken), seed % 3) for place, seed in enumerate(seeds)]
    return datasets.Dataset.from_dict(
        {"image": [image for image, _ in cells], "label": [label for _, label in cells]}, features=features
    )


def write_data(folder: Path) -> Path:
    """A parquet folder with 24 training and 30 test images."""
    folder.mkdir()
    rows(range(24)).to_parquet(str(folder / "train.parquet"))
    rows(range(100, 130)).to_parquet(str(folder / "test.parquet"))
    return folder


def write_model(folder: Path) -> Path:
    """A checkpoint of a random two-block model for the tiny images."""
    torch.manual_seed(0)
    args: dict[str, Any] = {
        "img_size": 8,
        "patch_size": 4,
        "depth": 2,
        "embed_dim": 12,
        "num_heads": 2,
        "num_classes": 3,
    }
    model = timm.create_model("vit_tiny_patch16_224", **args)
    return save_pruned(model, folder, data_config=DATA_CONFIG, class_names=NAMES)


def tiny_recipe(folder: Path, **sections: Any) -> Recipe:
    """A recipe on the tiny model and images in `folder`, which runs in a second or two."""
    return parse_recipe(
        {
            "name": "tiny",
            "output": str(folder / "run"),
            "model": {"name": str(folder / "model")},
            "data": {"source": str(folder / "data")},
            "mine": {"num_images": 6, "nodes": 2, "check_images": 0},
            "score": {"num_images": 12},
            "prune": {"ratio": [0.25, 0.5]},
            "evaluate": {"latency_repeats": 2, "latency_batch_size": 2},
            "report": False,
        }
        | sections
    )


def short_training(epochs: int) -> dict[str, Any]:
    """Return settings of a training that learns the tiny images in seconds."""
    return {"epochs": epochs, "batch_size": 8, "learning_rate": 0.01, "warmup_epochs": 0, "crop_scale": [0.9, 1.0]}
