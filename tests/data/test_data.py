"""Reading and sampling labelled images from every kind of source."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import DATA_CONFIG, NAMES, rows

from pathprune.data import (
    SKIPPED,
    DataError,
    check_labels,
    evaluation_transform,
    make_loader,
    open_source,
    read_split,
    refuse_overlap,
)


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows(range(12)).to_parquet(str(folder / "train.parquet"))
    rows(range(100, 106)).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder


def test_a_parquet_folder_has_named_splits_that_can_be_sliced(parquet_folder: Path) -> None:
    load = open_source(str(parquet_folder))
    assert len(read_split(load, "train")) == 12
    assert len(read_split(load, "test")) == 6
    part = read_split(load, "train[3:7]")
    assert part.labels.tolist() == [0, 1, 2, 0]
    assert part.class_names == ("cat", "dog", "owl")


def test_image_folders_saved_datasets_and_parquet_give_the_same_images(parquet_folder: Path, tmp_path: Path) -> None:
    source = read_split(open_source(str(parquet_folder)), "train").with_transform(evaluation_transform(DATA_CONFIG))
    folder = tmp_path / "folder"
    for index, cell in enumerate(source.rows["image"]):
        file = folder / "train" / NAMES[index % 3] / f"{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cell["bytes"])
    rows(range(12)).save_to_disk(str(tmp_path / "saved"))
    expected = {source[item][0].numpy().tobytes(): source[item][1] for item in range(12)}
    for other in (folder, tmp_path / "saved"):
        images = read_split(open_source(str(other)), "train").with_transform(evaluation_transform(DATA_CONFIG))
        assert {images[item][0].numpy().tobytes(): images[item][1] for item in range(12)} == expected


def test_images_are_resized_and_normalised_by_the_data_config() -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    grey = io.BytesIO()
    Image.new("L", (20, 12), 255).save(grey, "PNG")  # greyscale and not square
    table = datasets.Dataset.from_dict({"image": [{"bytes": grey.getvalue(), "path": None}], "label": [2]}, features)
    images = read_split(lambda _: table, "train").with_transform(evaluation_transform(DATA_CONFIG))
    image, label = images[0]
    assert label == 2
    torch.testing.assert_close(image, torch.full((3, 8, 8), (1 - 0.5) / 0.25))


def test_unreadable_images_are_dropped_and_logged_by_position(caplog: pytest.LogCaptureFixture) -> None:
    images = read_split(lambda _: rows(range(9), broken=(4,)), "train")
    readable, hashes = images.drop_unreadable(max_unreadable=0.1, threads=2)
    assert readable.indices.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert readable.labels.tolist() == [0, 1, 2, 0, 2, 0, 1, 2]
    assert len(set(hashes)) == 8
    assert "split 'train': 1 of 9 images cannot be read and are skipped: position 4 (" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_marks_unreadable_images_as_skipped(num_workers: int) -> None:
    images = read_split(lambda _: rows(range(9), broken=(4,)), "train")
    loader = make_loader(
        images.with_transform(evaluation_transform(DATA_CONFIG)), batch_size=4, num_workers=num_workers
    )
    assert torch.cat([labels for _, labels in loader]).tolist() == [0, 1, 2, 0, SKIPPED, 2, 0, 1, 2]


def test_too_many_unreadable_images_raise_with_their_positions() -> None:
    images = read_split(lambda _: rows(range(9), broken=(1, 4, 5)), "train")
    with pytest.raises(DataError, match=r"3 of 9 images cannot be read, but at most 2 may be skipped \(position 1 \("):
        images.drop_unreadable(max_unreadable=0.2)


def test_broken_bytes_of_every_format_count_as_unreadable() -> None:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    rng = np.random.default_rng(1)
    cells = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        stream = io.BytesIO()
        pixels.save(stream, kind)
        for _ in range(30):
            content = bytearray(stream.getvalue())
            for place in rng.integers(0, len(content), 8):
                content[place] = rng.integers(0, 256)
            cells.append({"bytes": bytes(content[: rng.integers(1, len(content) + 1)]), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    table = datasets.Dataset.from_dict({"image": cells, "label": [0] * len(cells)}, features=features)
    readable, _ = read_split(lambda _: table, "train").drop_unreadable(max_unreadable=1.0)
    assert 0 < len(readable) < len(cells)


def test_images_can_be_stored_as_bytes_or_paths(tmp_path: Path) -> None:
    cell = rows([7]).cast_column("image", datasets.Image(decode=False))["image"][0]["bytes"]
    (tmp_path / "seven.png").write_bytes(cell)
    for column in ([cell], [str(tmp_path / "seven.png")]):
        table = datasets.Dataset.from_dict({"image": column, "label": [1]})
        images, hashes = read_split(lambda _, table=table: table, "train").drop_unreadable(max_unreadable=0)
        assert (len(images), len(hashes)) == (1, 1)


def test_overlapping_splits_are_detected_by_content() -> None:
    train, test = read_split(lambda _: rows(range(10)), "train"), read_split(lambda _: rows(range(8, 14)), "test")
    with pytest.raises(DataError, match="2 of the 10 images used to mine"):
        refuse_overlap(test.hash_content(), {"mine": train.hash_content()})
    refuse_overlap(test.hash_content(), {"mine": train.take(np.arange(8)).hash_content()})


def test_hub_names_may_contain_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []

    def load_dataset(*, path: str, **_: object) -> datasets.Dataset:
        paths.append(path)
        return rows(range(3))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_split(open_source("owner/imagenet-v2.0"), "test")) == 3
    assert paths == ["owner/imagenet-v2.0"]


def test_labels_can_be_renumbered_by_class_name() -> None:
    images = read_split(lambda _: rows(range(6)), "train").relabel(["owl", "elk", "cat", "dog"])
    assert images.labels.tolist() == [2, 3, 0, 2, 3, 0]
    assert images.class_names == ("owl", "elk", "cat", "dog")
    hidden = replace(images, class_names=("a", "b", "c"), labels=np.array([-1, 0, 1, 2, 3, 0])).relabel(["c", "a", "b"])
    assert hidden.labels.tolist() == [-1, 1, 2, 0, 3, 1]
    with pytest.raises(DataError, match="label -1 of image 0 is out of range"):
        check_labels(hidden, num_classes=3)


def test_a_label_outside_the_head_raises_with_its_value_and_image() -> None:
    images = read_split(lambda _: rows(range(6)), "train")
    check_labels(images, num_classes=3)
    with pytest.raises(DataError, match="label 2 of image 2 is out of range: the model has 2 classes"):
        check_labels(images, num_classes=2)


def test_labels_can_be_strings_or_integers() -> None:
    table = rows(range(4)).remove_columns("label")
    words = read_split(lambda _: table.add_column("label", ["owl", "cat", "owl", "dog"]), "train")
    assert (words.class_names, words.labels.tolist()) == (("cat", "dog", "owl"), [2, 0, 2, 1])
    numbers = read_split(lambda _: table.add_column("cls", [4, 0, 1, 1]), "train")
    assert (numbers.class_names, numbers.labels.tolist()) == (("0", "1", "2", "3", "4"), [4, 0, 1, 1])


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("./missing", "train", "data source './missing' does not exist"),
        ("{folder}/missing.parquet", "train", "does not exist; give a folder"),
        ("{folder}", "validation", "split 'validation' of data source .* cannot be read"),
    ],
)
def test_missing_data_raises_in_one_line(parquet_folder: Path, source: str, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_source(source.format(folder=parquet_folder))(split)
    assert "\n" not in str(caught.value)


def test_an_image_without_a_label_raises() -> None:
    table = rows(range(3)).remove_columns("label").add_column("label", [0, None, 1])
    with pytest.raises(DataError, match="no label for image 1"):
        read_split(lambda _: table, "train")


def test_an_empty_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains neither parquet files nor images"):
        open_source(str(tmp_path))


def test_a_missing_column_raises_with_the_columns_of_the_data() -> None:
    table = rows(range(3)).rename_column("label", "kind")
    with pytest.raises(DataError, match=r"no label column named label, .* or cls; columns: image, kind"):
        read_split(lambda _: table, "train")
    assert read_split(lambda _: table, "train", label_column="kind").labels.tolist() == [0, 1, 2]


def test_the_embedded_cifar10_splits_are_balanced_and_disjoint() -> None:
    load = open_source("demo")
    train, test = read_split(load, "train"), read_split(load, "test")
    assert np.bincount(train.labels).tolist() == [200] * 10
    assert np.bincount(test.labels).tolist() == [400] * 10
    assert train.class_names[:3] == ("airplane", "automobile", "bird")
    refuse_overlap(test.hash_content(), {"mine": train.hash_content()})
