"""Reading labelled images from every kind of source."""

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
    sample_balanced,
)


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows(range(12)).to_parquet(str(folder / "train.parquet"))
    rows(range(100, 106)).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder


def test_parquet_folder_gives_named_splits_and_slices(parquet_folder: Path) -> None:
    load = open_source(str(parquet_folder))
    assert len(read_split(load, "train")) == 12
    assert len(read_split(load, "test")) == 6
    part = read_split(load, "train[3:7]")
    assert part.labels.tolist() == [0, 1, 2, 0]
    assert part.class_names == ("cat", "dog", "owl")


def test_image_folder_and_saved_dataset_give_what_parquet_gives(parquet_folder: Path, tmp_path: Path) -> None:
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


def test_images_are_resized_and_normalised_as_the_data_config_says() -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    grey = io.BytesIO()
    Image.new("L", (20, 12), 255).save(grey, "PNG")  # greyscale and not square, as found in the wild
    table = datasets.Dataset.from_dict({"image": [{"bytes": grey.getvalue(), "path": None}], "label": [2]}, features)
    images = read_split(lambda _: table, "train").with_transform(evaluation_transform(DATA_CONFIG))
    image, label = images[0]
    assert label == 2
    torch.testing.assert_close(image, torch.full((3, 8, 8), (1 - 0.5) / 0.25))


def test_unreadable_images_are_found_and_named(caplog: pytest.LogCaptureFixture) -> None:
    images = read_split(lambda _: rows(range(9), broken=(4,)), "train")
    readable, hashes = images.readable(max_unreadable=0.1, threads=2)
    assert readable.indices.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert readable.labels.tolist() == [0, 1, 2, 0, 2, 0, 1, 2]
    assert len(set(hashes)) == 8
    assert "split 'train': 1 of 9 images are skipped: 4 (" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_that_were_not_looked_for_become_skipped_rows(num_workers: int) -> None:
    images = read_split(lambda _: rows(range(9), broken=(4,)), "train")
    loader = make_loader(
        images.with_transform(evaluation_transform(DATA_CONFIG)), batch_size=4, num_workers=num_workers
    )
    assert torch.cat([labels for _, labels in loader]).tolist() == [0, 1, 2, 0, SKIPPED, 2, 0, 1, 2]


def test_too_many_unreadable_images_are_an_error_that_names_them() -> None:
    images = read_split(lambda _: rows(range(9), broken=(1, 4, 5)), "train")
    with pytest.raises(DataError, match=r"3 of 9 images cannot be read, 2 may be skipped \(position 1 \("):
        images.readable(max_unreadable=0.2)


def test_broken_bytes_of_every_format_are_unreadable_and_nothing_worse() -> None:
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
    readable, _ = read_split(lambda _: table, "train").readable(max_unreadable=1.0)
    assert 0 < len(readable) < len(cells)


def test_bytes_and_paths_are_images_too(tmp_path: Path) -> None:
    cell = rows([7]).cast_column("image", datasets.Image(decode=False))["image"][0]["bytes"]
    (tmp_path / "seven.png").write_bytes(cell)
    for column in ([cell], [str(tmp_path / "seven.png")]):
        table = datasets.Dataset.from_dict({"image": column, "label": [1]})
        images, hashes = read_split(lambda _, table=table: table, "train").readable(max_unreadable=0)
        assert (len(images), len(hashes)) == (1, 1)


def test_sampling_is_balanced_seeded_and_without_repeats() -> None:
    images = read_split(lambda _: rows(range(30)), "train")
    sample = sample_balanced(images, num_images=9, seed=1)
    assert np.bincount(sample.labels).tolist() == [3, 3, 3]
    assert len(set(sample.indices)) == 9
    assert (sample_balanced(images, num_images=9, seed=1).indices == sample.indices).all()
    assert set(sample_balanced(images, num_images=9, seed=2).indices) != set(sample.indices)
    assert len(sample_balanced(images, num_images=None, seed=1)) == 30


def test_sampling_per_class_takes_what_there_is_of_rare_classes() -> None:
    images = read_split(lambda _: rows([*range(30), 30, 33, 36]), "train")  # 13, 10 and 10 of each class
    sample = sample_balanced(images.take(np.flatnonzero(images.indices > 20)), images_per_class=5, seed=1)
    assert np.bincount(sample.labels).tolist() == [5, 3, 3]
    assert sample.indices.min() > 20
    with pytest.raises(DataError, match="images_per_class is 0"):
        sample_balanced(images, images_per_class=0, seed=1)


def test_overlap_is_found_by_content_whatever_the_splits_are_called() -> None:
    train, test = read_split(lambda _: rows(range(10)), "train"), read_split(lambda _: rows(range(8, 14)), "test")
    with pytest.raises(DataError, match="2 of the 10 images used to mine"):
        refuse_overlap(test.content_hashes(), {"mine": train.content_hashes()})
    refuse_overlap(test.content_hashes(), {"mine": train.take(np.arange(8)).content_hashes()})


def test_names_of_the_hub_may_have_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load_dataset(*, path: str, **_: object) -> datasets.Dataset:
        asked.append(path)
        return rows(range(3))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_split(open_source("owner/imagenet-v2.0"), "test")) == 3
    assert asked == ["owner/imagenet-v2.0"]


def test_labels_can_be_numbered_by_name() -> None:
    images = read_split(lambda _: rows(range(6)), "train").renamed(["owl", "elk", "cat", "dog"])
    assert images.labels.tolist() == [2, 3, 0, 2, 3, 0]
    assert images.class_names == ("owl", "elk", "cat", "dog")
    hidden = replace(images, class_names=("a", "b", "c"), labels=np.array([-1, 0, 1, 2, 3, 0])).renamed(["c", "a", "b"])
    assert hidden.labels.tolist() == [-1, 1, 2, 0, 3, 1]
    with pytest.raises(DataError, match="label -1 of image 0 is out of range"):
        check_labels(hidden, num_classes=3)


def test_labels_outside_the_head_are_refused_by_value_and_image() -> None:
    images = read_split(lambda _: rows(range(6)), "train")
    check_labels(images, num_classes=3)
    with pytest.raises(DataError, match="label 2 of image 2 is out of range: the model has 2 classes"):
        check_labels(images, num_classes=2)


def test_string_and_integer_labels_are_understood() -> None:
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
def test_missing_data_is_said_in_one_line(parquet_folder: Path, source: str, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_source(source.format(folder=parquet_folder))(split)
    assert "\n" not in str(caught.value)


def test_an_image_without_a_label_is_refused() -> None:
    table = rows(range(3)).remove_columns("label").add_column("label", [0, None, 1])
    with pytest.raises(DataError, match="no label for image 1"):
        read_split(lambda _: table, "train")


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no parquet files and no images"):
        open_source(str(tmp_path))


def test_missing_columns_are_said_with_those_there_are() -> None:
    table = rows(range(3)).rename_column("label", "kind")
    with pytest.raises(DataError, match=r"no label column named like label, .* columns: image, kind"):
        read_split(lambda _: table, "train")
    assert read_split(lambda _: table, "train", label_column="kind").labels.tolist() == [0, 1, 2]


def test_the_embedded_images_are_disjoint_balanced_cifar10() -> None:
    load = open_source("demo")
    train, test = read_split(load, "train"), read_split(load, "test")
    assert np.bincount(train.labels).tolist() == [200] * 10
    assert np.bincount(test.labels).tolist() == [400] * 10
    assert train.class_names[:3] == ("airplane", "automobile", "bird")
    refuse_overlap(test.content_hashes(), {"mine": train.content_hashes()})
