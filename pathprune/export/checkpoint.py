"""Export a checkpoint by its name, compared on the images of a source."""

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
    """Export the model that `load_model(name)` gives to `folder`; see `export_model` for what is found and raised.

    Images of `source`, through the model's own transform, are what answers are compared on; their labels do not matter.
    The dense model of the comparison is the architecture at full width, with random weights.
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
        images=images_of(source, split, num_images=num_images, data_config=loaded.data_config),
        dense=dense if is_pruned else None,
        dynamic_batch=dynamic_batch,
        batch_size=batch_size,
        repeats=repeats,
        about=about,
    )


def images_of(source: str, split: str, *, num_images: int, data_config: Mapping[str, Any]) -> Tensor:
    """A balanced sample of a split's readable images as the model takes them, `[N, C, H, W]`."""
    rows = sample_balanced(read_split(open_source(source), split, labels="any"), num_images=num_images, seed=0)
    rows, _ = rows.drop_unreadable(max_unreadable=0.01)
    rows = rows.with_transform(evaluation_transform(data_config))
    return torch.stack([rows[item][0] for item in range(len(rows))])
