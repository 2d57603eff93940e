"""What mining yields of each image: the paths of a batch (`MinedPaths`), and those of a split on record (`PathSet`).

On disk the record carries its description beside its data, see `pathprune.mining.records`.
"""

# B images of a batch, N images of a split, L layers, W neurons of a layer, k neurons chosen in a layer

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from pathprune.files import write_atomically
from pathprune.mining.records import Settings, check_same_mining, described, description

COLUMNS = ("indices", "labels", "predictions", "targets", "jas", "paths")  # of a path set


@dataclass(frozen=True)
class MinedPaths:
    """The paths of a batch and the dense attributions they were chosen by, on the model's device.

    `scores`, `own` and `mass` are `[B, L, W]`, or a list of `[B, W_l]` where layers differ in width. What `scores` and
    `own` are depends on the method (a: activations, G: their integrated gradients, Σ: over the clamped tokens):

    - `jas`: the layer's joint score; Σ a·G
    - `activation`: Σ a; the same
    - `influence-pattern`: Σ G, with G averaged over scaled inputs; Σ a·G
    """

    paths: Tensor  # int64 [B, L, k], best first
    scores: Tensor | list[Tensor]  # what the paths are sorted by, signed
    own: Tensor | list[Tensor]  # each neuron's own term, signed
    mass: Tensor | list[Tensor]  # |own|, summing to 1 over every image's layer
    jas: Tensor  # [B], the joint attribution score of the path of best neurons
    targets: Tensor  # int64 [B], the classes that were explained; -1 without a classifier
    predictions: Tensor  # int64 [B]; -1 without a classifier


def per_layer(dense: Tensor | list[Tensor]) -> list[Tensor]:
    """`MinedPaths.scores`, `.own` or `.mass` as a list of `[B, W_l]`, however it is held."""
    return list(dense.unbind(1)) if isinstance(dense, Tensor) else dense


def normalised(x: Tensor) -> Tensor:
    """|x| `[B, W]` with every row scaled to sum 1; a row of zeros stays zero."""
    magnitude = x.abs()
    total = magnitude.sum(1, keepdim=True)
    return magnitude / total.where(total > 0, 1)


@dataclass(frozen=True)
class PathSet:
    """The paths of a split, one record per image, on the CPU.

    On disk: a parquet file with a row per image: `index` (in its split), `label`, `prediction`, `target` (int64), `jas`
    (float64) and `path` (for every layer, in the order of the sites, the list of its k neurons, best first; int64).
    """

    site_names: tuple[str, ...]
    class_names: tuple[str, ...]
    indices: Tensor  # int64 [N]
    labels: Tensor  # int64 [N]
    predictions: Tensor  # int64 [N]
    targets: Tensor  # int64 [N]
    jas: Tensor  # float64 [N]
    paths: Tensor  # int64 [N, L, k]
    settings: Settings = field(default_factory=dict)  # how the paths were mined

    @classmethod
    def empty(cls, site_names: Iterable[str], class_names: Sequence[str], settings: Settings | None = None) -> PathSet:
        """No images yet."""
        none = torch.zeros(0, dtype=torch.int64)
        sites = tuple(site_names)
        paths = none.view(0, len(sites), 0)
        return cls(sites, tuple(class_names), none, none, none, none, none.double(), paths, dict(settings or {}))

    @classmethod
    def of(
        cls,
        mined: MinedPaths,
        *,
        indices: Tensor,
        labels: Tensor,
        site_names: Sequence[str],
        class_names: Sequence[str],
        settings: Settings | None = None,
    ) -> PathSet:
        """The record of one batch."""
        if not len(indices) == len(labels) == len(mined.paths):
            raise ValueError(f"{len(mined.paths)} images were mined, with {len(indices)} indices, {len(labels)} labels")
        return cls(
            site_names=tuple(site_names),
            class_names=tuple(class_names),
            indices=indices.to("cpu", torch.int64),
            labels=labels.to("cpu", torch.int64),
            predictions=mined.predictions.cpu(),
            targets=mined.targets.cpu(),
            jas=mined.jas.cpu().to(torch.float64),
            paths=mined.paths.cpu(),
            settings=dict(settings or {}),
        )

    @classmethod
    def concat(cls, parts: Sequence[PathSet]) -> PathSet:
        """The images of all `parts`, in order."""
        if not parts:
            raise ValueError("no path sets to join; at least one is needed")
        for part in parts[1:]:
            check_same_mining(parts[0], part)
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS}
        return cls.of_tensors(columns, parts[0].site_names, parts[0].class_names, parts[0].settings)

    @classmethod
    def of_tensors(
        cls, tensors: Mapping[str, Tensor], site_names: Sequence[str], class_names: Sequence[str], settings: Settings
    ) -> PathSet:
        """What `tensors()` gave, read back."""
        columns = {name: tensors[name] for name in COLUMNS}
        return cls(site_names=tuple(site_names), class_names=tuple(class_names), settings=settings, **columns)

    def tensors(self) -> dict[str, Tensor]:
        """The columns, by name."""
        return {name: getattr(self, name) for name in COLUMNS}

    def __len__(self) -> int:
        return len(self.indices)

    def save(self, file: Path | str) -> None:
        """Write the parquet file, all or nothing."""
        save_paths([self], file)

    @classmethod
    def load(cls, file: Path | str) -> PathSet:
        """Read a file that `save` wrote. Raises `ValueError` for anything else and for another schema version."""
        table = pyarrow.parquet.read_table(file)
        text = (table.schema.metadata or {}).get(b"pathprune")
        about = described(text.decode() if text else None, file, "a path set")

        column = {name: table[name].combine_chunks() for name in table.column_names}
        num_layers = table.schema.field("path").type.list_size
        return cls(
            site_names=tuple(about["site_names"]),
            class_names=tuple(about["class_names"]),
            indices=torch.tensor(column["index"].to_numpy()),
            labels=torch.tensor(column["label"].to_numpy()),
            predictions=torch.tensor(column["prediction"].to_numpy()),
            targets=torch.tensor(column["target"].to_numpy()),
            jas=torch.tensor(column["jas"].to_numpy()),
            paths=torch.tensor(column["path"].flatten().flatten().to_numpy()).view(len(table), num_layers, -1),
            settings=about["settings"],
        )

    def table(self) -> pyarrow.Table:
        """The rows of the parquet file."""
        _, num_layers, num_chosen = self.paths.shape
        chosen = pyarrow.FixedSizeListArray.from_arrays(self.paths.flatten().numpy(), num_chosen)
        columns = {
            "index": self.indices.numpy(),
            "label": self.labels.numpy(),
            "prediction": self.predictions.numpy(),
            "target": self.targets.numpy(),
            "jas": self.jas.numpy(),
            "path": pyarrow.FixedSizeListArray.from_arrays(chosen, num_layers),
        }
        return pyarrow.table(columns, metadata={"pathprune": description(self)})


def save_paths(parts: Iterable[PathSet], file: Path | str) -> None:
    """Write the images of all `parts` (at least one), in order, as one parquet file, all or nothing.

    One part is in memory at a time.
    """
    remaining = iter(parts)
    first = next(remaining, None)
    if first is None:
        raise ValueError("no paths to save; at least one image is needed")
    with (
        write_atomically(Path(file)) as unfinished,
        pyarrow.parquet.ParquetWriter(unfinished, first.table().schema) as writer,
    ):
        for part in chain([first], remaining):
            check_same_mining(first, part)
            writer.write_table(part.table())
