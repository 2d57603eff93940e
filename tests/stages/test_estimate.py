"""What mining would cost: by hand from a rate, and measured without leaving anything behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny import tiny_recipe, write_model

from pathprune.cli import main
from pathprune.stages import estimate
from pathprune.stages.estimate import Estimate, estimate_recipe


def test_times_add_up_over_tokens_and_are_shared_by_devices() -> None:
    found = Estimate({"all": 10.0, "class": 40.0}, "a device")
    assert found.seconds(400) == 40 + 10
    assert found.seconds(400, devices=8) == 50 / 8
    recipe = tiny_recipe(Path("x"), mine={"num_images": 400})
    assert found.table(recipe)["this recipe: 400"] == {1: 50, 8: 50 / 8, 64: 50 / 64}
    assert found.table(recipe)["ImageNet-1k, all images"][1] == 1_281_167 * (1 / 10 + 1 / 40)
    of_each = tiny_recipe(Path("x"), mine={"images_per_class": 5})
    assert list(found.table(of_each)) == list(estimate.WORKLOADS)


def test_a_rate_is_images_by_the_time_of_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model")
    batches = []
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: 2.0 * len(batches))
    locate = estimate.locate_paths

    def timed(adapted, images, **settings):
        batches.append((len(images), settings["tokens"], settings["nodes"]))
        return locate(adapted, images, **settings)

    monkeypatch.setattr(estimate, "locate_paths", timed)
    mine = {"num_images": 6, "nodes": 3, "batch_size": 5}
    found = estimate_recipe(tiny_recipe(tmp_path, mine=mine, score={"criteria": ["path", "random"]}))
    assert found.rates == {"all": 2.5}
    assert batches == [(5, "all", 3)] * (1 + estimate.TURNS)


def test_the_command_prints_a_table_and_leaves_no_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model")  # no data
    (tmp_path / "tiny.yaml").write_text(tiny_recipe(tmp_path, data={"source": "demo"}).to_yaml(), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["pathprune", "mine", str(tmp_path / "tiny.yaml"), "--estimate"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    printed = capsys.readouterr().out
    for word in ("8 × 8 px, 2 nodes, batches of 16, float32", "64 devices", "ImageNet-21k, all images", "images/s"):
        assert word in printed
    assert not (tmp_path / "run").exists()
