"""A split mined in shards: the same bit by bit, however it is interrupted, dealt out, or damaged in between."""

import json
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_split import NUM_KILLS, mine, shard_folder, tiny_images, tiny_model

from pathprune.mining import ClassStats, PathSet, locate_paths, mine_split
from pathprune.mining import shards as shards_module
from pathprune.mining.shards import ShardError
from pathprune.mining.split import split_into_shards


@pytest.fixture(scope="module")
def adapted():
    return tiny_model()


def same_bits(folder: Path, other: Path) -> bool:
    names = ("stats.safetensors", "paths.parquet")
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)


def refuse(*_):
    raise AssertionError("mined again")


def mined_at(*folders: Path) -> list[Path]:
    for folder in folders:
        folder.mkdir()
    return list(folders)


def test_a_run_killed_at_random_moments_repeats_at_most_a_shard_each_time_and_ends_the_same(tmp_path):
    script = Path(__file__).with_name("tiny_split.py")
    done = subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    assert len(result["kills"]) == NUM_KILLS
    assert NUM_KILLS >= 20
    assert result["exit"] == 0
    for kill in result["kills"]:
        assert kill["finished"] <= kill["mined"] <= kill["finished"] + 1
    assert any(kill["writing"] for kill in result["kills"])
    assert sum(kill["finished"] for kill in result["kills"]) > 5
    assert same_bits(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed" / "shards").glob(".*"))


def test_shards_add_up_to_the_statistics_of_the_whole_split(tmp_path, adapted):
    images = tiny_images(10)
    stats = mine(tmp_path, adapted, images, shard_size=4)
    whole = ClassStats.empty({site.name: site.width for site in adapted.sites}, stats.class_names, stats.settings)
    paths = PathSet.load(tmp_path / "paths.parquet")
    assert sorted(paths.indices.tolist()) == list(range(10))
    assert paths.labels.tolist() == sorted(paths.labels.tolist()) == [index % 3 for index in paths.indices.tolist()]
    by_index = {int(index): item for item, index in enumerate(images.indices)}
    for row, index in enumerate(paths.indices.tolist()):
        image, label = images[by_index[index]]
        mined = locate_paths(adapted, image[None], torch.tensor([label]), nodes=2)
        whole.update(mined, torch.tensor([label]))
        assert torch.equal(mined.paths[0], paths.paths[row])
    assert torch.equal(stats.num_images, whole.num_images)
    for kind in ("count", "mass", "published-mass"):
        for ours, theirs in zip(stats.sums(kind), whole.sums(kind), strict=True):
            torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-6)


def test_sums_do_not_depend_on_how_many_classes_are_in_memory_at_once(tmp_path, adapted, monkeypatch):
    mine(tmp_path, adapted, tiny_images(11), shard_size=4)  # shards of one class, and of two
    shards, whole = shard_folder(tmp_path, adapted), (tmp_path / "stats.safetensors").read_bytes()
    made, empty = [], ClassStats.empty.__func__
    recorded = classmethod(
        lambda cls, widths, names, *more: made.append(len(names)) or empty(cls, widths, names, *more)
    )
    monkeypatch.setattr(ClassStats, "empty", recorded)
    for size in (1, 2, 3):
        monkeypatch.setattr(shards_module, "BLOCK_BYTES", size * 3 * 8 * sum(shards.widths.values()))
        shards.save_sums(3, tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == whole
        assert max(made) == size
        made.clear()


def test_a_shard_holds_few_classes_whatever_the_order_of_the_images():
    images = tiny_images(30)  # ten of each of three classes
    shards = split_into_shards(images, 5)
    assert [len(np.unique(images.labels[shard])) for shard in shards] == [1] * 6
    assert sorted(np.concatenate(shards)) == list(range(30))


def test_a_run_begun_by_two_processes_can_be_finished_by_one(tmp_path, adapted):
    alone, together, handed_over = mined_at(tmp_path / "alone", tmp_path / "together", tmp_path / "handed-over")
    images = tiny_images(11)  # six shards of two, of which the last is short
    options = {"locate": partial(locate_paths, adapted, nodes=2), "shard_size": 2, "batch_size": 2}
    mine(alone, adapted, images, **options)
    shards = shard_folder(together, adapted)
    shards.prepare()
    for process in (1, 0):
        mine_split(adapted, images, shards, **options, process=process, num_processes=2)
    mine(together, adapted, images, **options | {"locate": refuse})
    assert same_bits(alone, together)

    shards = shard_folder(handed_over, adapted)
    shards.prepare()
    mine_split(adapted, images, shards, **options, process=1, num_processes=2)
    assert sorted(file.stem for file in shards.path.iterdir()) == ["00001", "00003", "00005"]
    seen = []
    mine(handed_over, adapted, images, **options, on_progress=seen.append)
    assert seen == [8, 10, 12]  # three shards were there
    assert same_bits(alone, handed_over)


def damages(content: bytes):
    yield "cut short", content[: len(content) // 2]
    yield "empty", b""
    yield "cut by a byte", content[:-1]
    for position in np.random.default_rng(0).choice(len(content), 300, replace=False):
        yield f"bit {position}", content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def test_damaged_shards_are_never_taken_for_sound(tmp_path, adapted):
    mine(tmp_path, adapted, tiny_images(4), shard_size=4)
    shards = shard_folder(tmp_path, adapted)
    file, sound = shards.file(0), shards.read(0)
    content = file.read_bytes()
    refused = 0
    for damage, damaged in damages(content):
        file.write_bytes(damaged)
        try:
            read = shards.read(0)
        except ShardError:
            refused += 1
        else:  # spaces that pad the header
            assert all(torch.equal(read.paths.to_tensors()[k], v) for k, v in sound.paths.to_tensors().items()), damage
            assert all(torch.equal(read.stats.to_tensors()[k], v) for k, v in sound.stats.to_tensors().items()), damage
    assert refused >= 295


def test_a_damaged_shard_is_named_and_it_alone_is_mined_again(tmp_path, adapted, caplog):
    once, twice = mined_at(tmp_path / "once", tmp_path / "twice")
    for folder in (once, twice):
        mine(folder, adapted, tiny_images(9))  # three of each of three classes, two images to a shard
    shards = shard_folder(twice, adapted)
    shards.file(1).write_bytes(shards.file(1).read_bytes()[:-100])
    calls = []

    def counted(images, labels):
        calls.append(labels.tolist())
        return locate_paths(adapted, images, labels, nodes=2)

    with caplog.at_level(logging.WARNING):
        mine(twice, adapted, tiny_images(9), locate=counted)
    assert calls == [[0, 1]]
    assert f"shard {shards.file(1)} is missing, truncated or not a shard" in caplog.text
    assert same_bits(once, twice)


def test_shards_of_other_inputs_are_removed_and_counted(tmp_path, adapted, caplog):
    mine(tmp_path, adapted, tiny_images(5))
    other = shard_folder(tmp_path, adapted, key="another key")
    with pytest.raises(ShardError, match=r"00000\.safetensors was mined from another model, other images or settings"):
        other.read(0)
    with caplog.at_level(logging.WARNING):
        other.prepare()
    assert "deleted 3 shards in" in caplog.text
    assert not list(other.path.iterdir())


def test_what_a_killed_process_was_writing_is_removed(tmp_path, adapted):
    shards = shard_folder(tmp_path, adapted)
    shards.path.mkdir()
    for name in (".00000.safetensors.part", ".tmpSgB7wv"):  # the second is what safetensors itself writes to at first
        (shards.path / name).write_bytes(b"half")
    shards.prepare()
    assert not list(shards.path.iterdir())


def test_images_that_cannot_be_read_are_left_out(tmp_path, adapted):
    images = tiny_images(9, broken=(0, 3, 6, 4))  # every image of class 0, so that a whole shard is empty
    stats = mine(tmp_path, adapted, images, shard_size=3)
    assert stats.num_images.tolist() == [0, 2, 3]
    assert sorted(PathSet.load(tmp_path / "paths.parquet").indices.tolist()) == [1, 2, 5, 7, 8]


def test_nothing_left_to_mine_is_said(tmp_path, adapted):
    with pytest.raises(ValueError, match="no paths to save"):
        mine(tmp_path, adapted, tiny_images(2, broken=(0, 1)))


def test_automatic_batches_halve_until_they_fit(tmp_path, adapted):
    sizes = []

    def small_memory(images, labels):
        sizes.append(len(images))
        if len(images) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return locate_paths(adapted, images, labels, nodes=2)

    automatic, fixed = mined_at(tmp_path / "automatic", tmp_path / "fixed")
    mine(automatic, adapted, tiny_images(12), shard_size=8, batch_size="auto", locate=small_memory)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]
    mine(fixed, adapted, tiny_images(12), shard_size=8, batch_size=2)
    assert same_bits(automatic, fixed)


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path, adapted):
    def broken(images, labels):
        raise ValueError("no path")

    with pytest.raises(ValueError, match="no path"):
        mine(tmp_path, adapted, tiny_images(4), batch_size="auto", locate=broken)
