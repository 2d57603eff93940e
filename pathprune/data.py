"""Labelled images: a source -> named splits -> the model's own transform -> loaders.

A *source* is `demo` (embedded), a folder or file of parquet, an image folder, a `datasets.save_to_disk` folder, or the
name of a data set on the Hugging Face hub. Splits are written as in `datasets`: `train`, `train[:1000]`, `test[50%:]`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, List, ReadInstruction, Value
from numpy.typing import NDArray
from PIL import Image as PILImage
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

log = logging.getLogger(__name__)

SKIPPED = -1  # label of a row whose image could not be read: it is left out of every count
UNLABELLED = -2  # label of an image that has none
Transform = Callable[[PILImage.Image], Tensor]
Labels = Literal["one", "each", "any"]

_COLUMNS = {"image": ("image", "img", "pixel_values", "jpg", "png"), "label": ("label", "labels", "fine_label", "cls")}

_MINE_UNLABELLED = "mine unlabelled images with mine.targets=prediction"


class DataError(ValueError):
    """The data cannot be read as asked."""


def demo_data_folder() -> Path:
    """Folder of the embedded CIFAR-10 subset."""
    return Path(str(resources.files("pathprune"))) / "demo" / "data"


@dataclass(frozen=True)
class LabelledImages(TorchDataset[tuple[Tensor, int]]):
    """Images and labels of one split; item `i` is `(image [C, H, W], label)`, or zeros and `SKIPPED` if unreadable."""

    split: str
    rows: Dataset
    indices: NDArray[np.int64]  # positions in the split of the source, in the order of the items
    image_column: str
    labels: NDArray[np.int64]  # aligned with `indices`
    class_names: tuple[str, ...]
    transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        assert self.transform is not None, "set a transform with `with_transform` before reading items"
        try:
            image = _decode(self._cell(item))
        except _Unreadable:
            return torch.zeros_like(self.transform(PILImage.new("RGB", (8, 8)))), SKIPPED
        return self.transform(image), int(self.labels[item])

    def picture(self, item: int) -> PILImage.Image:
        """One readable image as it is in the source, in RGB."""
        return _decode(self._cell(item))

    @property
    def is_labelled(self) -> bool:
        return not (self.labels == UNLABELLED).any()

    @property
    def source_key(self) -> str:
        """Stands for the content of the source, which is not read for it: another file, date or size gives another."""
        return str(self.rows._fingerprint)

    def with_transform(self, transform: Transform) -> LabelledImages:
        return replace(self, transform=transform)

    def take(self, items: NDArray[np.integer[Any]]) -> LabelledImages:
        """Return the subset made of these items, in this order."""
        return replace(self, indices=self.indices[items], labels=self.labels[items])

    def renamed(self, class_names: Sequence[str]) -> LabelledImages:
        """Return the same images with labels numbered as `class_names` are; every class must be among them."""
        number = np.array([list(class_names).index(name) for name in self.class_names])
        return replace(self, class_names=tuple(class_names), labels=number[self.labels])

    def readable(self, *, max_unreadable: float, threads: int = 1) -> tuple[LabelledImages, list[bytes]]:
        """Decode every image once; returns those that can be read, and a hash of the content of each.

        Raises `DataError` if more than the share `max_unreadable` cannot be read; fewer are logged by position.
        """
        with ThreadPoolExecutor(max(1, threads)) as pool:
            found = list(pool.map(self._inspect, range(len(self))))
        broken = [item for item, digest in enumerate(found) if not isinstance(digest, bytes)]
        shown = ", ".join(f"{self.indices[item]} ({found[item]!s})" for item in broken[:4])
        self.check_unreadable(len(broken), max_unreadable, shown)
        if broken:
            more = ", …" if len(broken) > 4 else ""
            log.warning(
                "split '%s': %d of %d images are skipped: %s%s", self.split, len(broken), len(self), shown, more
            )
        kept = np.array([item for item in range(len(self)) if isinstance(found[item], bytes)], dtype=np.int64)
        return self.take(kept), [digest for digest in found if isinstance(digest, bytes)]

    def content_hashes(self) -> list[bytes]:
        """Hash of each item's content, nothing decoded; an unreadable item's hash is of nothing."""
        return [_hash(self._cell(item)) for item in range(len(self))]

    def _cell(self, item: int) -> Any:
        return self.rows[int(self.indices[item])][self.image_column]

    def _inspect(self, item: int) -> bytes | _Unreadable:
        cell = self._cell(item)
        try:
            _decode(cell)
        except _Unreadable as reason:
            return reason
        return _hash(cell)

    def check_unreadable(self, number: int, max_unreadable: float, shown: str = "") -> None:
        """Raise `DataError` if more than the share `max_unreadable` of the images, `number` of them, is unreadable."""
        allowed = math.ceil(max_unreadable * len(self))
        if number > allowed:
            raise DataError(
                f"split '{self.split}': {number} of {len(self)} images cannot be read, {allowed} may be skipped"
                f"{f' (position {shown})' if shown else ''}; repair the data or raise data.max_unreadable"
            )


class _Unreadable(Exception):  # noqa: N818  (it is what is found, not an error of the program)
    """Why one image cannot be decoded."""


def _decode(cell: Any) -> PILImage.Image:
    if isinstance(cell, PILImage.Image):
        return cell.convert("RGB")
    content = _encoded(cell)
    if not content:
        raise _Unreadable("empty")
    try:
        return PILImage.open(io.BytesIO(content) if isinstance(content, bytes) else content).convert("RGB")
    except Exception as error:  # Pillow raises whatever a broken file leads its decoders to
        raise _Unreadable(str(error) or type(error).__name__) from error


def _encoded(cell: Any) -> bytes | str | None:
    """The bytes of an encoded image, or the path of its file."""
    if isinstance(cell, Mapping):
        return cell.get("bytes") or cell.get("path")
    return cell if isinstance(cell, bytes | str) else None


def _hash(cell: Any) -> bytes:
    content = _encoded(cell)
    if isinstance(content, str):
        file = Path(content)
        content = file.read_bytes() if file.is_file() else None
    return hashlib.blake2b(content or b"", digest_size=16).digest()


def open_source(source: str, *, config: str | None = None, revision: str | None = None) -> Callable[[str], Dataset]:
    """Return a function from a split's name (with or without a slice) to its rows.

    Raises `DataError` when the source or, later, the split does not exist.
    """
    path = demo_data_folder() if source == "demo" else Path(source).expanduser()
    if not path.exists():
        if source.startswith((".", "/", "~")) or path.suffix or source.count("/") > 1:
            raise DataError(
                f"data source '{source}' does not exist; give a folder, a parquet file, a hub name or 'demo'"
            )
        return lambda split: _load(split, source, path=source, name=config, revision=revision)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return lambda split: _slice_saved(split, source, datasets.load_from_disk(str(path)))
    files = _parquet_splits(path)
    if files:
        return lambda split: _load(split, source, path="parquet", data_files=files)
    if path.is_dir():
        if not any(file.suffix.lower() in PILImage.registered_extensions() for file in path.rglob("*")):
            raise DataError(f"data source '{source}' holds no parquet files and no images")
        return lambda split: _load(split, source, path="imagefolder", data_dir=str(path))
    raise DataError(f"data source '{source}' is a {path.suffix or 'file'}, not parquet, an image folder or a hub name")


def _parquet_splits(path: Path) -> dict[str, list[str]]:
    if path.is_file():
        return {"train": [str(path)]} if path.suffix == ".parquet" else {}
    splits: dict[str, list[str]] = {}
    for file in sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
        splits.setdefault(file.stem.split("-")[0], []).append(str(file))
    return splits


def _load(split: str, source: str, **arguments: Any) -> Dataset:
    try:
        return datasets.load_dataset(split=split, **arguments)
    except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data source '{source}' is neither on this machine nor could it be fetched from the hub: {_line(error)}"
        ) from error
    except (ValueError, AssertionError, IndexError) as error:
        raise DataError(f"split '{split}' of data source '{source}' cannot be read: {_line(error)}") from error


def _slice_saved(split: str, source: str, saved: Dataset | DatasetDict) -> Dataset:
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
    name = split.partition("[")[0]
    if name not in splits:
        raise DataError(f"split '{name}' is not in data source '{source}', which has {', '.join(splits)}")
    bounds = ReadInstruction.from_spec(split).to_absolute({key: len(rows) for key, rows in splits.items()})[0]
    return splits[name].select(range(bounds.from_ or 0, len(splits[name]) if bounds.to is None else bounds.to))


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def read_split(
    load: Callable[[str], Dataset],
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: Labels = "one",
) -> LabelledImages:
    """Read one split's labels; images stay on disk until an item is asked for.

    - labels: `one`: every image must have one; `each`: an image with a list of them becomes an item for each; `any`:
      images without labels, or with lists, are `UNLABELLED`, and have no class names.
    """
    rows = load(split)
    if len(rows) == 0:
        raise DataError(f"split '{split}' has no images")
    image_column = _column(rows, "image", image_column)
    if labels != "any" or _is_labelled(rows, label_column):
        items, numbers, names = _labels(rows, _column(rows, "label", label_column), several=labels == "each")
    else:
        items, numbers, names = np.arange(len(rows)), np.full(len(rows), UNLABELLED), ()
    if isinstance(rows.features[image_column], Image):
        rows = rows.cast_column(image_column, Image(decode=False))  # decoded here, where a broken file can be skipped
    elif not isinstance(rows.features[image_column], Value):
        raise DataError(
            f"image column '{image_column}' holds {rows.features[image_column]}; images, their encoded bytes or paths "
            "of files are supported"
        )
    return LabelledImages(split, rows, items, image_column, numbers, names)


def _column(rows: Dataset, kind: str, asked: str | None) -> str:
    for name in [asked] if asked else _COLUMNS[kind]:
        if name in rows.column_names:
            return name
    wanted = f"'{asked}'" if asked else f"named like {', '.join(_COLUMNS[kind])}"
    hint = f", or {_MINE_UNLABELLED}" if kind == "label" else ""
    raise DataError(f"no {kind} column {wanted}; columns: {', '.join(rows.column_names)}; set data.{kind}_column{hint}")


def _is_labelled(rows: Dataset, asked: str | None) -> bool:
    """Whether every image has one label."""
    if asked is None and not set(_COLUMNS["label"]) & set(rows.column_names):
        return False
    column = _column(rows, "label", asked)
    if isinstance(rows.features[column], List):
        return False
    return all(value is not None and value != -1 for value in rows[column][:])  # -1: missing, in many data sets


def _labels(
    rows: Dataset, column: str, *, several: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """Rows, their labels, and the names of the classes; a row for each of its labels where it has `several`."""
    feature, values, items = rows.features[column], rows[column][:], np.arange(len(rows))
    if None in values:
        raise DataError(
            f"label column '{column}' has no label for image {values.index(None)}; leave such images out, or "
            f"{_MINE_UNLABELLED}"
        )
    if isinstance(feature, List) and several:
        items = np.repeat(items, [len(labels) for labels in values])
        feature, values = feature.feature, [label for labels in values for label in labels]
    if isinstance(feature, ClassLabel):
        return items, np.asarray(values, dtype=np.int64), tuple(feature.names)
    if isinstance(feature, Value) and feature.dtype.endswith("string"):
        names = sorted(set(values))
        return items, np.asarray([names.index(value) for value in values], dtype=np.int64), tuple(names)
    if isinstance(feature, Value) and "int" in feature.dtype:
        numbers = np.asarray(values, dtype=np.int64)
        return items, numbers, tuple(str(index) for index in range(int(numbers.max(initial=-1)) + 1))
    if isinstance(feature, List):
        raise DataError(
            f"label column '{column}' holds lists; images with several labels can be mined (mine.objective="
            "label-probability) and calibrated on, not trained or evaluated on"
        )
    raise DataError(f"label column '{column}' holds {feature}; integers, class labels or strings are supported")


def check_labels(images: LabelledImages, *, num_classes: int) -> None:
    """Refuse labels that the model's head cannot predict."""
    labels = images.labels
    wrong = np.flatnonzero((labels != UNLABELLED) & ((labels < 0) | (labels >= num_classes)))
    if len(wrong):
        raise DataError(
            f"split '{images.split}': label {images.labels[wrong[0]]} of image {images.indices[wrong[0]]} is out of "
            f"range: the model has {num_classes} classes (0 to {num_classes - 1}); check the data set or "
            "model.num_classes"
        )


def sample_balanced(
    images: LabelledImages, *, num_images: int | None = None, images_per_class: int | None = None, seed: int
) -> LabelledImages:
    """Sample at random: `num_images`, spread evenly over the classes as far as each has enough, or up to
    `images_per_class` of every class; None does not limit.
    """
    for name, limit in {"num_images": num_images, "images_per_class": images_per_class}.items():
        if limit is not None and limit < 1:
            raise DataError(f"{name} is {limit}; give a positive number, or null for all {len(images)}")
    if (num_images is None or num_images >= len(images)) and images_per_class is None:
        return images
    shuffled = np.random.default_rng(seed).permutation(len(images))
    labels = images.labels[shuffled]
    turn = np.empty(len(images), dtype=np.int64)  # the n-th image of its class goes in round n
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    in_turn = shuffled[np.argsort(turn, kind="stable")]
    if images_per_class is not None:
        in_turn = in_turn[: np.count_nonzero(turn < images_per_class)]
    return images.take(in_turn[:num_images])


def refuse_overlap(kept: Sequence[bytes], others: Mapping[str, Sequence[bytes]], *, held: str = "evaluate") -> None:
    """Refuse data in which an image held out to `held` is also mined or trained on …; compares hashes of content."""
    held_out = set(kept)
    for use, hashes in others.items():
        shared = sum(digest in held_out for digest in hashes)
        if shared:
            raise DataError(
                f"{shared} of the {len(hashes)} images used to {use} are also {held}d on; accuracy on them would not "
                "be honest: choose disjoint splits in data.splits"
            )


def evaluation_transform(data_config: Mapping[str, Any]) -> Transform:
    """Timm's evaluation transform for a model's data config: image -> normalised `[C, H, W]`."""
    transform: Transform = create_transform(**data_config, is_training=False)
    return transform


def make_loader(
    images: LabelledImages,
    *,
    batch_size: int,
    shuffle: bool = False,
    drop_last: bool = False,
    num_workers: int = 0,
    seed: int = 0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Re-iterable batches of `(images [B, C, H, W], labels int64 [B])`."""
    return DataLoader(
        images,  # type: ignore[arg-type]  # torch types batches like items; labels are collated from ints
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.cuda.is_available(),
    )


def load_batches(
    images: LabelledImages, batches: Sequence[NDArray[np.int64]], num_workers: int = 0
) -> DataLoader[tuple[Tensor, Tensor]]:
    """The given batches of items, in order, as `make_loader` gives them."""
    return DataLoader(
        images,  # type: ignore[arg-type]  # as in make_loader
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
        pin_memory=torch.cuda.is_available(),
    )
