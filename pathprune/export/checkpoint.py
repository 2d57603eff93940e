"""Export of a checkpoint by its name, with a check on images of a data source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathprune._version import __version__
from pathprune.data import evaluation_transform, open_source, read_split, sample_balanced
from pathprune.export.exporter import ExportedFile, check_replaceable, export_model
from pathprune.export.formats import Format
from pathprune.models.adapt import adapt
from pathprune.models.loading import load_model


def export_checkpoint(
    name: str,
    folder: str | Path,
    *,
    formats: Sequence[Format],
    source: str = "demo",
    split: str = "test",
    num_images: int = 256,
    batch_size: int = 1,
    dynamic_batch: bool = False,
    repeats: int = 20,
) -> list[ExportedFile]:
    """Export the model that `load_model(name)` gives to `folder` and return the rows of the report.

    Files and model are compared on `num_images` images of `source`, with the model's own transform and without labels.
    If the model is pruned, size and speed are compared with its architecture at full width, with random weights.
    `export_model` documents the rest.
    """
    check_replaceable(Path(folder))
    loaded = load_model(name)
    dense = loaded.architecture.build(data_config=loaded.data_config, class_names=loaded.class_names).float()
    is_pruned = [site.width for site in adapt(dense).sites] != [site.width for site in adapt(loaded.model).sites]
    about = {
        "pathprune": __version__,
        "model": Path(name).name,
        "images": {"source": Path(source).name, "split": split},
        "input": {"images": loaded.data_config},
        "class_names": loaded.class_names,
        "dynamic_batch": dynamic_batch,
    }
    return export_model(
        loaded.model,
        folder,
        formats=formats,
        images=load_images(source, split, num_images=num_images, data_config=loaded.data_config),
        dense=dense if is_pruned else None,
        dynamic_batch=dynamic_batch,
        batch_size=batch_size,
        repeats=repeats,
        about=about,
    )


def load_images(source: str, split: str, *, num_images: int, data_config: Mapping[str, Any]) -> Tensor:
    """Load a balanced sample of a split's readable images, transformed for the model: `[N, C, H, W]`."""
    sample = sample_balanced(read_split(open_source(source), split, labels="any"), num_images=num_images, seed=0)
    sample, _ = sample.drop_unreadable(max_unreadable=0.01)
    sample = sample.with_transform(evaluation_transform(data_config))
    return torch.stack([sample[item][0] for item in range(len(sample))])
