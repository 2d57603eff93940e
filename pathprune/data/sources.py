"""Data sources and their splits.

A *source* is `demo` (embedded), a parquet file, a folder of parquet files, an image folder, a folder written by
`datasets.save_to_disk`, or the name of a data set on the Hugging Face hub. Splits have the syntax of `datasets`:
`train`, `train[:1000]`, `test[50%:]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, List, ReadInstruction, Value
from numpy.typing import NDArray
from PIL import Image as PILImage

from pathprune.data.config import explain_missing, is_missing
from pathprune.data.images import UNLABELLED, DataError, LabelledImages

Labels = Literal["one", "each", "any"]

_COLUMNS = {"image": ("image", "img", "pixel_values", "jpg", "png"), "label": ("label", "labels", "fine_label", "cls")}

_MINE_UNLABELLED = "mine unlabelled images with mine.targets=prediction"


@dataclass(frozen=True)
class _LabelTable:
    """Labels of a split; an image with several labels has several items."""

    items: NDArray[np.int64]  # item -> row of the split
    labels: NDArray[np.int64]  # item -> class index
    class_names: tuple[str, ...]


def demo_data_folder() -> Path:
    """Return the folder of the embedded CIFAR-10 subset."""
    return Path(str(resources.files("pathprune"))) / "demo" / "data"


def open_source(source: str, *, config: str | None = None, revision: str | None = None) -> Callable[[str], Dataset]:
    """Return a function that loads the rows of a split, given its name with or without a slice.

    Raises `DataError` if the source does not exist; the function raises it if the split does not exist.
    """
    path = demo_data_folder() if source == "demo" else Path(source).expanduser()
    if not path.exists():
        if is_missing(source):
            raise DataError(explain_missing(source))
        return lambda split: _load(split, source, path=source, name=config, revision=revision)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return lambda split: _slice_saved(split, source, datasets.load_from_disk(str(path)))
    files = _find_parquet_splits(path)
    if files:
        return lambda split: _load(split, source, path="parquet", data_files=files)
    if path.is_dir():
        if not any(file.suffix.lower() in PILImage.registered_extensions() for file in path.rglob("*")):
            raise DataError(f"data source '{source}' contains neither parquet files nor images")
        return lambda split: _load(split, source, path="imagefolder", data_dir=str(path))
    raise DataError(
        f"data source '{source}' is a {path.suffix or 'file without suffix'}; give a folder, a parquet file, a hub "
        "name or 'demo'"
    )


def _find_parquet_splits(path: Path) -> dict[str, list[str]]:
    """Return the parquet files of each split; `train-00000-of-00002.parquet` belongs to the split `train`."""
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
            f"data source '{source}' is not a local path and cannot be fetched from the hub: {_first_line(error)}"
        ) from error
    except (ValueError, AssertionError, IndexError) as error:
        raise DataError(f"split '{split}' of data source '{source}' cannot be read: {_first_line(error)}") from error


def _slice_saved(split: str, source: str, saved: Dataset | DatasetDict) -> Dataset:
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
    name = split.partition("[")[0]
    if name not in splits:
        raise DataError(f"split '{name}' is not in data source '{source}', which has {', '.join(splits)}")
    bounds = ReadInstruction.from_spec(split).to_absolute({key: len(rows) for key, rows in splits.items()})[0]
    return splits[name].select(range(bounds.from_ or 0, len(splits[name]) if bounds.to is None else bounds.to))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def read_split(
    load: Callable[[str], Dataset],
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: Labels = "one",
) -> LabelledImages:
    """Read the labels of one split; images are read when an item is accessed.

    - labels: `one`: every image must have exactly one label. `each`: an image with a list of labels becomes one item
      per label. `any`: if some image has no label, or has a list of labels, all images become `UNLABELLED` and there
      are no class names.

    Raises `DataError` for an empty split, a missing column, or a column of an unsupported type.
    """
    rows = load(split)
    if len(rows) == 0:
        raise DataError(f"split '{split}' has no images")
    image_column = _find_column(rows, "image", image_column)
    if labels != "any" or _is_labelled(rows, label_column):
        table = _read_labels(rows, _find_column(rows, "label", label_column), expand_lists=labels == "each")
    else:
        table = _LabelTable(np.arange(len(rows)), np.full(len(rows), UNLABELLED), ())
    if isinstance(rows.features[image_column], Image):
        rows = rows.cast_column(image_column, Image(decode=False))  # LabelledImages decodes, and skips broken files
    elif not isinstance(rows.features[image_column], Value):
        raise DataError(
            f"image column '{image_column}' has the type {rows.features[image_column]}; choose a column of images, of "
            "encoded bytes or of file paths in data.image_column"
        )
    return LabelledImages(split, rows, table.items, image_column, table.labels, table.class_names)


def _find_column(rows: Dataset, kind: Literal["image", "label"], name: str | None) -> str:
    """Return the given column, or the first one with a usual name; raises `DataError` if there is none."""
    for candidate in [name] if name else _COLUMNS[kind]:
        if candidate in rows.column_names:
            return candidate
    wanted = f"'{name}'" if name else f"named {', '.join(_COLUMNS[kind][:-1])} or {_COLUMNS[kind][-1]}"
    hint = f", or {_MINE_UNLABELLED}" if kind == "label" else ""
    raise DataError(f"no {kind} column {wanted}; columns: {', '.join(rows.column_names)}; set data.{kind}_column{hint}")


def _is_labelled(rows: Dataset, label_column: str | None) -> bool:
    """Return True if every image has exactly one label."""
    if label_column is None and not set(_COLUMNS["label"]) & set(rows.column_names):
        return False
    column = _find_column(rows, "label", label_column)
    if isinstance(rows.features[column], List):
        return False
    return all(value is not None and value != -1 for value in rows[column][:])  # -1: missing, in many data sets


def _read_labels(rows: Dataset, column: str, *, expand_lists: bool) -> _LabelTable:
    """Return the labels of a column; with `expand_lists`, a list of labels becomes one item per label.

    Integers, strings and `ClassLabel` are supported. Raises `DataError` for a missing label or another type.
    """
    feature, values, items = rows.features[column], rows[column][:], np.arange(len(rows))
    if None in values:
        raise DataError(
            f"label column '{column}' has no label for image {values.index(None)}; remove images without a label, or "
            f"{_MINE_UNLABELLED}"
        )
    if isinstance(feature, List) and expand_lists:
        items = np.repeat(items, [len(labels) for labels in values])
        feature, values = feature.feature, [label for labels in values for label in labels]
    if isinstance(feature, ClassLabel):
        return _LabelTable(items, np.asarray(values, dtype=np.int64), tuple(feature.names))
    if isinstance(feature, Value) and feature.dtype.endswith("string"):
        names = sorted(set(values))
        indices = np.asarray([names.index(value) for value in values], dtype=np.int64)
        return _LabelTable(items, indices, tuple(names))
    if isinstance(feature, Value) and "int" in feature.dtype:
        indices = np.asarray(values, dtype=np.int64)
        return _LabelTable(items, indices, tuple(str(index) for index in range(int(indices.max(initial=-1)) + 1)))
    if isinstance(feature, List):
        raise DataError(
            f"label column '{column}' contains lists; images with several labels can be mined (with mine.objective="
            "label-probability) and used for calibration, but not for training or evaluation"
        )
    raise DataError(
        f"label column '{column}' has the type {feature}; choose a column of integers, strings or ClassLabel in "
        "data.label_column"
    )
