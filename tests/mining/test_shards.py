"""Mining a split in shards: the same bits after kills, with several processes, and after damage on disk."""

import json
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_split import NUM_KILLS, build_tiny_model, load_tiny_images, mine, open_shard_folder

from pathprune.mining import STATISTICS, ClassStats, PathSet, locate_paths, mine_split
from pathprune.mining import shards as shards_module
from pathprune.mining.shards import ShardError
from pathprune.mining.split import split_into_shards


@pytest.fixture(scope="module")
def adapted():
    return build_tiny_model()


def has_same_bits(folder: Path, other: Path) -> bool:
    names = ("stats.safetensors", "paths.parquet")
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)


def fail(*_):
    raise AssertionError("mined a finished shard again")


def make_folders(parent: Path, *names: str) -> list[Path]:
    folders = [parent / name for name in names]
    for folder in folders:
        folder.mkdir()
    return folders


def test_a_run_killed_at_random_moments_repeats_at_most_one_shard_per_kill_and_ends_the_same(tmp_path):
    script = Path(__file__).with_name("tiny_split.py")
    process = subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True, text=True)
    result = json.loads(process.stdout)
    assert len(result["kills"]) == NUM_KILLS
    assert NUM_KILLS >= 20
    assert result["exit"] == 0
    for kill in result["kills"]:
        assert kill["finished"] <= kill["mined"] <= kill["finished"] + 1
    assert any(kill["writing"] for kill in result["kills"])
    assert sum(kill["finished"] for kill in result["kills"]) > 5
    assert has_same_bits(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed" / "shards").glob(".*"))


def test_shards_sum_to_the_statistics_of_the_whole_split(tmp_path, adapted):
    images = load_tiny_images(10)
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
    for statistic in STATISTICS:
        for sums_KW, expected_KW in zip(stats.sums(statistic), whole.sums(statistic), strict=True):
            torch.testing.assert_close(sums_KW, expected_KW.float(), rtol=1e-4, atol=1e-6)


def test_sums_do_not_depend_on_the_number_of_classes_in_memory(tmp_path, adapted, monkeypatch):
    mine(tmp_path, adapted, load_tiny_images(11), shard_size=4)  # shards of one class and of two classes
    shards, whole = open_shard_folder(tmp_path, adapted), (tmp_path / "stats.safetensors").read_bytes()
    block_sizes, empty = [], ClassStats.empty.__func__

    def record_size(cls, widths, class_names, *args):
        block_sizes.append(len(class_names))
        return empty(cls, widths, class_names, *args)

    monkeypatch.setattr(ClassStats, "empty", classmethod(record_size))
    for size in (1, 2, 3):
        monkeypatch.setattr(shards_module, "BLOCK_BYTES", size * 3 * 8 * sum(shards.widths.values()))
        shards.save_sums(3, tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == whole
        assert max(block_sizes) == size
        block_sizes.clear()


def test_shards_are_sorted_by_class():
    images = load_tiny_images(30)  # ten of each of three classes
    shards = split_into_shards(images, 5)
    assert [len(np.unique(images.labels[shard])) for shard in shards] == [1] * 6
    assert sorted(np.concatenate(shards)) == list(range(30))


def test_one_process_can_finish_a_run_of_two(tmp_path, adapted):
    alone, together, handed_over = make_folders(tmp_path, "alone", "together", "handed-over")
    images = load_tiny_images(11)  # five shards of two images and one of one
    options = {"locate": partial(locate_paths, adapted, nodes=2), "shard_size": 2, "batch_size": 2}
    mine(alone, adapted, images, **options)
    shards = open_shard_folder(together, adapted)
    shards.prepare()
    for process in (1, 0):
        mine_split(adapted, images, shards, **options, process=process, num_processes=2)
    mine(together, adapted, images, **options | {"locate": fail})
    assert has_same_bits(alone, together)

    shards = open_shard_folder(handed_over, adapted)
    shards.prepare()
    mine_split(adapted, images, shards, **options, process=1, num_processes=2)
    assert sorted(file.stem for file in shards.path.iterdir()) == ["00001", "00003", "00005"]
    reports = []
    mine(handed_over, adapted, images, **options, on_progress=reports.append)
    assert reports == [8, 10, 12]  # three shards were finished before
    assert has_same_bits(alone, handed_over)


def damage(content: bytes):
    """Yield descriptions and damaged copies of `content`."""
    yield "cut short", content[: len(content) // 2]
    yield "empty", b""
    yield "cut by a byte", content[:-1]
    for position in np.random.default_rng(0).choice(len(content), 300, replace=False):
        yield f"bit {position}", content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def test_damaged_shards_are_never_read_as_intact(tmp_path, adapted):
    mine(tmp_path, adapted, load_tiny_images(4), shard_size=4)
    shards = open_shard_folder(tmp_path, adapted)
    file, intact = shards.file(0), shards.read(0)
    content = file.read_bytes()
    num_refused = 0
    for description, damaged in damage(content):
        file.write_bytes(damaged)
        try:
            read = shards.read(0)
        except ShardError:
            num_refused += 1
        else:  # the damage is in the padding of the header
            for record, expected in ((read.paths, intact.paths), (read.stats, intact.stats)):
                for name, tensor in expected.to_tensors().items():
                    assert torch.equal(record.to_tensors()[name], tensor), description
    assert num_refused >= 295


def test_only_a_damaged_shard_is_reported_and_mined_again(tmp_path, adapted, caplog):
    once, twice = make_folders(tmp_path, "once", "twice")
    for folder in (once, twice):
        mine(folder, adapted, load_tiny_images(9))  # three images of each of three classes, two images per shard
    shards = open_shard_folder(twice, adapted)
    shards.file(1).write_bytes(shards.file(1).read_bytes()[:-100])
    calls = []

    def record_labels(images, labels):
        calls.append(labels.tolist())
        return locate_paths(adapted, images, labels, nodes=2)

    with caplog.at_level(logging.WARNING):
        mine(twice, adapted, load_tiny_images(9), locate=record_labels)
    assert calls == [[0, 1]]
    assert f"shard {shards.file(1)} is missing, truncated or not a shard" in caplog.text
    assert has_same_bits(once, twice)


def test_shards_of_other_inputs_are_deleted_and_counted(tmp_path, adapted, caplog):
    mine(tmp_path, adapted, load_tiny_images(5))
    other = open_shard_folder(tmp_path, adapted, key="another key")
    with pytest.raises(ShardError, match=r"00000\.safetensors was mined from another model, other images or settings"):
        other.read(0)
    with caplog.at_level(logging.WARNING):
        other.prepare()
    assert "deleted 3 shards in" in caplog.text
    assert not list(other.path.iterdir())


def test_unfinished_files_of_a_killed_process_are_deleted(tmp_path, adapted):
    shards = open_shard_folder(tmp_path, adapted)
    shards.path.mkdir()
    for name in (".00000.safetensors.part", ".tmpSgB7wv"):  # the second is a temporary file of safetensors
        (shards.path / name).write_bytes(b"half")
    shards.prepare()
    assert not list(shards.path.iterdir())


def test_unreadable_images_are_left_out(tmp_path, adapted):
    images = load_tiny_images(9, broken=(0, 3, 6, 4))  # among them all images of class 0, so that one shard is empty
    stats = mine(tmp_path, adapted, images, shard_size=3)
    assert stats.num_images.tolist() == [0, 2, 3]
    assert sorted(PathSet.load(tmp_path / "paths.parquet").indices.tolist()) == [1, 2, 5, 7, 8]


def test_a_split_without_readable_images_is_refused(tmp_path, adapted):
    with pytest.raises(ValueError, match="no paths to save"):
        mine(tmp_path, adapted, load_tiny_images(2, broken=(0, 1)))


def test_automatic_batches_are_halved_until_they_fit(tmp_path, adapted):
    sizes = []

    def locate_in_small_memory(images, labels):
        sizes.append(len(images))
        if len(images) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return locate_paths(adapted, images, labels, nodes=2)

    automatic, fixed = make_folders(tmp_path, "automatic", "fixed")
    mine(automatic, adapted, load_tiny_images(12), shard_size=8, batch_size="auto", locate=locate_in_small_memory)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]
    mine(fixed, adapted, load_tiny_images(12), shard_size=8, batch_size=2)
    assert has_same_bits(automatic, fixed)


def test_other_errors_do_not_halve_the_batches(tmp_path, adapted):
    def fail_to_locate(images, labels):
        raise ValueError("no path")

    with pytest.raises(ValueError, match="no path"):
        mine(tmp_path, adapted, load_tiny_images(4), batch_size="auto", locate=fail_to_locate)
