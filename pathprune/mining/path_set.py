"""Paths of a split, one record per image, in memory and as a parquet file."""

# N images of a split, L layers, k neurons chosen in a layer

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
from pathprune.mining.mined_paths import MinedPaths
from pathprune.mining.records import Settings, check_same_mining, read_description, write_description

TENSOR_NAMES = ("indices", "labels", "predictions", "targets", "jas", "paths")


@dataclass(frozen=True)
class PathSet:
    """Paths of a split, one record per image, on the CPU.

    On disk, a parquet file with one row per image: `index` (position in the split), `label`, `prediction`, `target`
    (int64), `jas` (float64) and `path` (int64; for every layer, in the order of the sites, the list of the k chosen
    neurons, best first). The file's metadata carries a description, see `pathprune.mining.records`.
    """

    site_names: tuple[str, ...]
    class_names: tuple[str, ...]
    indices: Tensor  # int64 [N]
    labels: Tensor  # int64 [N]
    predictions: Tensor  # int64 [N]
    targets: Tensor  # int64 [N]
    jas: Tensor  # float64 [N]
    paths: Tensor  # int64 [N, L, k]
    settings: Settings = field(default_factory=dict)  # of the mining run

    @classmethod
    def empty(cls, site_names: Iterable[str], class_names: Sequence[str], settings: Settings | None = None) -> PathSet:
        """Return a path set without images."""
        sites = tuple(site_names)
        empty = torch.zeros(0, dtype=torch.int64)
        return cls(
            site_names=sites,
            class_names=tuple(class_names),
            indices=empty,
            labels=empty,
            predictions=empty,
            targets=empty,
            jas=empty.double(),
            paths=empty.view(0, len(sites), 0),
            settings=dict(settings or {}),
        )

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
        """Return the records of one batch. `indices` and `labels` are int64, one per image.

        Raises `ValueError` unless there are as many indices and labels as mined images.
        """
        if not len(indices) == len(labels) == len(mined.paths):
            raise ValueError(
                f"{len(mined.paths)} images were mined, but {len(indices)} indices and {len(labels)} labels were "
                "given; pass one of each per image"
            )
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
        """Return the images of all `parts`, in order.

        Raises `ValueError` without parts, and for parts of different sites, classes or settings.
        """
        if not parts:
            raise ValueError("no path sets to join; pass at least one")
        for part in parts[1:]:
            check_same_mining(parts[0], part)
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSOR_NAMES}
        return cls.from_tensors(tensors, parts[0].site_names, parts[0].class_names, parts[0].settings)

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], site_names: Sequence[str], class_names: Sequence[str], settings: Settings
    ) -> PathSet:
        """Build a path set from the result of `to_tensors`; other entries of `tensors` are ignored."""
        columns = {name: tensors[name] for name in TENSOR_NAMES}
        return cls(site_names=tuple(site_names), class_names=tuple(class_names), settings=settings, **columns)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors, by name."""
        return {name: getattr(self, name) for name in TENSOR_NAMES}

    def __len__(self) -> int:
        return len(self.indices)

    def save(self, file: Path | str) -> None:
        """Write the parquet file atomically."""
        save_paths([self], file)

    @classmethod
    def load(cls, file: Path | str) -> PathSet:
        """Read a file that `save` wrote. Raises `ValueError` for a parquet file of another kind or schema version."""
        table = pyarrow.parquet.read_table(file)
        text = (table.schema.metadata or {}).get(b"pathprune")
        description = read_description(text.decode() if text else None, file, "a path set")

        column = {name: table[name].combine_chunks() for name in table.column_names}
        num_layers = table.schema.field("path").type.list_size
        return cls(
            site_names=description.site_names,
            class_names=description.class_names,
            indices=torch.tensor(column["index"].to_numpy()),
            labels=torch.tensor(column["label"].to_numpy()),
            predictions=torch.tensor(column["prediction"].to_numpy()),
            targets=torch.tensor(column["target"].to_numpy()),
            jas=torch.tensor(column["jas"].to_numpy()),
            paths=torch.tensor(column["path"].flatten().flatten().to_numpy()).view(len(table), num_layers, -1),
            settings=description.settings,
        )

    def to_table(self) -> pyarrow.Table:
        """Return the content of the parquet file."""
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
        return pyarrow.table(columns, metadata={"pathprune": write_description(self)})


def save_paths(parts: Iterable[PathSet], file: Path | str) -> None:
    """Write the images of all `parts`, in order, as one parquet file, atomically. One part is in memory at a time.

    Raises `ValueError` without parts, and for parts of different sites, classes or settings.
    """
    remaining = iter(parts)
    first = next(remaining, None)
    if first is None:
        raise ValueError("no paths to save; mine at least one readable image")
    with (
        write_atomically(Path(file)) as unfinished,
        pyarrow.parquet.ParquetWriter(unfinished, first.to_table().schema) as writer,
    ):
        for part in chain([first], remaining):
            check_same_mining(first, part)
            writer.write_table(part.to_table())
