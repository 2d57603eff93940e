"""Path sets: joining batches, saving and loading, and the documented parquet file."""

import json
from dataclasses import replace

import pyarrow.parquet
import pytest
import torch

from pathprune.mining import MinedPaths, PathSet

SITES = ("blocks.0.mlp.fc2", "blocks.1.mlp.fc2")
NAMES = ("cat", "dog")


def build_batch(paths, indices, labels) -> PathSet:
    num_images = len(paths)
    mined = MinedPaths(
        paths=torch.tensor(paths),
        scores=torch.zeros(num_images, 2, 9),
        own=torch.zeros(num_images, 2, 9),
        mass=torch.zeros(num_images, 2, 9),
        jas=torch.tensor(indices) / 2,
        targets=torch.tensor(labels),
        predictions=1 - torch.tensor(labels),
    )
    settings = {"method": "jas", "nodes": 4}
    indices, labels = torch.tensor(indices), torch.tensor(labels)
    return PathSet.of(mined, indices=indices, labels=labels, site_names=SITES, class_names=NAMES, settings=settings)


def build_path_set() -> PathSet:
    """Return a path set of a batch of two images and a batch of one."""
    first = build_batch([[[1, 2, 3], [4, 5, 6]], [[7, 8, 0], [1, 0, 3]]], [10, 13], [0, 1])
    return PathSet.concat([first, build_batch([[[2, 4, 6], [8, 0, 1]]], [21], [1])])


def test_concat_keeps_the_order():
    paths = build_path_set()
    assert len(paths) == 3
    assert paths.indices.tolist() == [10, 13, 21]
    assert paths.labels.tolist() == paths.targets.tolist() == [0, 1, 1]
    assert paths.predictions.tolist() == [1, 0, 0]
    assert paths.jas.tolist() == [5, 6.5, 10.5]
    assert paths.paths[2].tolist() == [[2, 4, 6], [8, 0, 1]]


def test_round_trip(tmp_path):
    file = tmp_path / "paths.parquet"
    build_path_set().save(file)
    loaded = PathSet.load(file)
    for name in ("indices", "labels", "predictions", "targets", "jas", "paths"):
        before, after = getattr(build_path_set(), name), getattr(loaded, name)
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
    assert (loaded.site_names, loaded.class_names, loaded.settings) == (SITES, NAMES, {"method": "jas", "nodes": 4})
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_is_as_documented(tmp_path):
    build_path_set().save(tmp_path / "paths.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "paths.parquet")
    assert table.slice(1, 1).to_pylist() == [
        {"index": 13, "label": 1, "prediction": 0, "target": 1, "jas": 6.5, "path": [[7, 8, 0], [1, 0, 3]]}
    ]
    assert json.loads(table.schema.metadata[b"pathprune"])["site_names"] == list(SITES)


def test_records_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="different class_names"):
        PathSet.concat([build_path_set(), replace(build_path_set(), class_names=("cat", "eel"))])
    with pytest.raises(ValueError, match="at least one"):
        PathSet.concat([])
    with pytest.raises(ValueError, match="1 images were mined, but 2 indices and 1 labels were given"):
        build_batch([[[1], [2]]], [0, 1], [0])


def test_files_of_another_kind_or_version_are_refused(tmp_path):
    file = tmp_path / "paths.parquet"
    build_path_set().save(file)
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.replace_schema_metadata(None), file)
    with pytest.raises(ValueError, match="does not hold a path set"):
        PathSet.load(file)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"pathprune": '{"schema": 0}'}), file)
    with pytest.raises(ValueError, match="schema version 0, but this pathprune reads version 1; mine again"):
        PathSet.load(file)
