"""Class statistics: sums by hand, merging against streaming, and files."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from pathprune.mining import ClassStats, MinedPaths, class_stats
from pathprune.mining.class_stats import save_stats
from pathprune.mining.mined_paths import normalize_rows

WIDTHS = {"blocks.0.mlp.fc2": 3, "blocks.1.mlp.fc2": 2}
NAMES = ["cat", "dog", "eel"]


def build_mined(first, second, paths) -> MinedPaths:
    """Return mined paths with the given own terms in two layers, and scores of twice the own term plus one."""
    own = [torch.tensor(first), torch.tensor(second)]
    num_images = len(first)
    return MinedPaths(
        paths=torch.tensor(paths),
        scores=[2 * x + 1 for x in own],
        own=own,
        mass=[x.abs() / x.abs().sum(1, keepdim=True) for x in own],
        jas=torch.zeros(num_images),
        targets=torch.zeros(num_images, dtype=torch.int64),
        predictions=torch.zeros(num_images, dtype=torch.int64),
    )


ONE = build_mined([[1.0, -2.0, 1.0]], [[3.0, 1.0]], [[[1, 0], [0, 1]]])
TWO = build_mined([[0.0, 2.0, 0.0], [4.0, 0.0, -4.0]], [[0.0, 1.0], [1.0, -1.0]], [[[1, 2], [1, 0]], [[0, 2], [0, 1]]])


def build_stats() -> ClassStats:
    """Return statistics of one eel, then of a cat and another eel."""
    stats = ClassStats.empty(WIDTHS, NAMES, {"method": "jas", "nodes": 4})
    stats.update(ONE, torch.tensor([2]))
    stats.update(TWO, torch.tensor([0, 2]))
    return stats


def assert_equal(first: ClassStats, second: ClassStats) -> None:
    for name in ("site_names", "class_names", "settings"):
        assert getattr(first, name) == getattr(second, name)
    assert torch.equal(first.num_images, second.num_images)
    for kind in ("count", "mass", "published-mass"):
        for a, b in zip(first.sums(kind), second.sums(kind), strict=True):
            assert torch.equal(a.float(), b.float())  # files hold float32


def test_sums_and_means_by_hand():
    stats = build_stats()
    assert stats.num_images.tolist() == [1, 0, 2]
    assert stats.empty_classes == [1]
    assert stats.count[0].tolist() == [[0, 1, 1], [0, 0, 0], [2, 1, 1]]
    assert stats.count[1].tolist() == [[1, 1], [0, 0], [2, 2]]
    assert stats.mass[0].tolist() == [[0, 1, 0], [0, 0, 0], [0.25 + 0.5, 0.5, 0.25 + 0.5]]
    assert stats.mass[1].tolist() == [[0, 1], [0, 0], [0.75 + 0.5, 0.25 + 0.5]]
    # scores of the eels' first layer: [3, -3, 3] and [9, 1, -7]
    expected = torch.tensor([1 / 3 + 9 / 17, 1 / 3 + 1 / 17, 1 / 3 + 7 / 17], dtype=torch.float64)
    torch.testing.assert_close(stats.published_mass[0][2], expected)
    assert next(stats.means("count")).tolist() == [[0, 1, 1], [0, 0, 0], [1, 0.5, 0.5]]
    assert list(stats.means("mass"))[1].tolist() == [[0, 1], [0, 0], [0.625, 0.375]]


def test_a_layer_without_attribution_has_no_mass():
    own = torch.tensor([[0.0, 0.0], [-0.5, 1.5]])
    assert normalize_rows(own).tolist() == [[0, 0], [0.25, 0.75]]


def test_merging_equals_streaming():
    first, second = ClassStats.empty(WIDTHS, NAMES), ClassStats.empty(WIDTHS, NAMES)
    first.update(ONE, torch.tensor([2]))
    second.update(TWO, torch.tensor([0, 2]))
    both = ClassStats.empty(WIDTHS, NAMES)
    both.update(ONE, torch.tensor([2]))
    both.update(TWO, torch.tensor([0, 2]))
    assert_equal(first + second, both)
    assert first.num_images.tolist() == [0, 0, 1]


def test_merging_refuses_other_settings():
    with pytest.raises(ValueError, match=r"different settings: \{'nodes': 4\} and \{'nodes': 8\}"):
        ClassStats.empty(WIDTHS, NAMES, {"nodes": 4}) + ClassStats.empty(WIDTHS, NAMES, {"nodes": 8})


@pytest.mark.parametrize(
    ("labels", "message"),
    [([3], "label 3 is out of range: there are 3 classes"), ([-1], "label -1"), ([0, 1], "but 1 images were mined")],
)
def test_bad_labels_are_refused_and_nothing_is_added(labels, message):
    stats = build_stats()
    with pytest.raises(ValueError, match=message):
        stats.update(ONE, torch.tensor(labels))
    assert_equal(stats, build_stats())


def test_paths_of_another_model_are_refused():
    stats = ClassStats.empty({"blocks.0.mlp.fc2": 3}, NAMES)
    with pytest.raises(ValueError, match=r"have widths \[3, 2\], but these statistics have widths \[3\]"):
        stats.update(ONE, torch.tensor([0]))


def test_an_unknown_statistic_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'masses'; choose from count, mass, published-mass"):
        build_stats().means("masses")


def test_round_trip(tmp_path):
    stats = build_stats()
    stats.save(tmp_path / "stats.safetensors")
    assert_equal(ClassStats.load(tmp_path / "stats.safetensors"), stats)
    assert [file.name for file in tmp_path.iterdir()] == ["stats.safetensors"]


def test_loaded_statistics_can_be_added_to(tmp_path):
    file = tmp_path / "stats.safetensors"
    build_stats().save(file)
    loaded, expected = ClassStats.load(file), build_stats()
    for stats in (loaded, expected):
        stats.update(ONE, torch.tensor([1]))
    assert_equal(loaded, expected)
    assert_equal(ClassStats.load(file), build_stats())
    assert_equal(ClassStats.load(file) + ClassStats.load(file), build_stats() + build_stats())


def test_loaded_statistics_do_not_read_a_file_that_replaced_theirs(tmp_path):
    file = tmp_path / "stats.safetensors"
    build_stats().save(file)
    loaded = ClassStats.load(file)
    (build_stats() + build_stats()).save(file)
    with pytest.raises(ValueError, match="was replaced since its statistics were loaded; load them again"):
        list(loaded.means("mass"))
    assert torch.equal(ClassStats.load(file).mass[0], 2 * build_stats().mass[0].float())


def test_saving_blocks_of_classes_equals_saving_all_classes_at_once(tmp_path):
    stats, description = (
        build_stats(),
        {"widths": WIDTHS, "class_names": NAMES, "settings": {"method": "jas", "nodes": 4}},
    )
    stats.save(tmp_path / "whole")
    blocks = [(first, stats.select_classes(torch.arange(3) == first)) for first in (2, 0)]  # the dogs have no images
    save_stats(blocks, tmp_path / "blocks", **description)
    assert (tmp_path / "blocks").read_bytes() == (tmp_path / "whole").read_bytes()
    tensors = load_file(tmp_path / "whole")  # with safetensors' own reader
    assert {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype != torch.float32} == {
        "num_images": torch.int64
    }
    assert torch.equal(tensors["count.blocks.0.mlp.fc2"].double(), stats.count[0])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "stats.safetensors"
    build_stats().save(file)

    def fail_midway(part, **_):
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(class_stats, "write_sums", fail_midway)
    with pytest.raises(OSError, match="disk full"):
        ClassStats.empty(WIDTHS, NAMES).save(file)
    assert_equal(ClassStats.load(file), build_stats())
    assert list(tmp_path.iterdir()) == [file]


def test_files_of_another_kind_or_version_are_refused(tmp_path):
    file = tmp_path / "stats.safetensors"
    build_stats().save(file)
    tensors = load_file(file)
    save_file(tensors, file)
    with pytest.raises(ValueError, match="does not hold class statistics"):
        ClassStats.load(file)
    save_file(tensors, file, {"pathprune": '{"schema": 99}'})
    with pytest.raises(ValueError, match="schema version 99, but this pathprune reads version 1; mine again"):
        ClassStats.load(file)
    file.write_text("no tensors")
    with pytest.raises(ValueError, match="does not hold class statistics"):
        ClassStats.load(file)
