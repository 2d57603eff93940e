"""A source of images -> its named splits, with labels and the names of classes.

A *source* is `demo` (embedded), a folder or file of parquet, an image folder, a `datasets.save_to_disk` folder, or the
name of a data set on the Hugging Face hub. Splits are written as in `datasets`: `train`, `train[:1000]`, `test[50%:]`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, List, ReadInstruction, Value
from numpy.typing import NDArray
from PIL import Image as PILImage

from pathprune.data.images import UNLABELLED, DataError, LabelledImages

Labels = Literal["one", "each", "any"]

_COLUMNS = {"image": ("image", "img", "pixel_values", "jpg", "png"), "label": ("label", "labels", "fine_label", "cls")}

_FILES = (".parquet", ".arrow", ".csv", ".json", ".jsonl", ".zip", ".tar", ".gz", ".npz")  # hub names may have dots too

_MINE_UNLABELLED = "mine unlabelled images with mine.targets=prediction"


def demo_data_folder() -> Path:
    """Folder of the embedded CIFAR-10 subset."""
    return Path(str(resources.files("pathprune"))) / "demo" / "data"


def open_source(source: str, *, config: str | None = None, revision: str | None = None) -> Callable[[str], Dataset]:
    """Return a function from a split's name (with or without a slice) to its rows.

    Raises `DataError` when the source or, later, the split does not exist.
    """
    path = demo_data_folder() if source == "demo" else Path(source).expanduser()
    if not path.exists():
        if source.startswith((".", "/", "~")) or path.suffix.lower() in _FILES or source.count("/") > 1:
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
