"""The bench: what it takes for dense and pruned, what it measures again, and how it shows it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import tiny_recipe

from pathprune.bench import measure as bench_module
from pathprune.bench.backends import BackendError
from pathprune.bench.groups import open_groups
from pathprune.bench.measure import BenchConfig, bench
from pathprune.cli import main
from pathprune.pipeline import prune_recipe
from pathprune.report.bench import build_bench_page, build_bench_table, compose_bench_notes
from pathprune.report.page import Figure, Table
from pathprune.report.render import render

CONFIG = BenchConfig(batch_sizes=(1, 2), backends=("eager",), repeats=2, warmup=1)


def recipe_file(folder: Path) -> str:
    recipe = tiny_recipe(folder, score={"criteria": ["magnitude-l2", "random"]}, compensation=["none", "mean"])
    (folder / "tiny.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    return str(folder / "tiny.yaml")


def fake_clock(monkeypatch: pytest.MonkeyPatch, *, ms_per_neuron: float = 1.0) -> None:
    """Models take as long as they have neurons, and 4 ms besides."""

    def times(runs: Mapping[str, Callable[[], Any]], **_: Any) -> dict[str, tuple[float, ...]]:
        peak = {name: 96.0 if name == "dense" else 48.0 for name in runs}
        return {name: (4 + ms_per_neuron * neurons,) * 3 for name, neurons in peak.items()}

    monkeypatch.setattr(bench_module, "time_in_turns", times)


def test_a_recipe_is_its_dense_model_and_one_model_for_each_widths(folder: Path) -> None:
    ((group,), out) = open_groups([recipe_file(folder)])
    assert out == folder / "run"
    assert list(group.pruned) == ["magnitude-l2 at 25%", "magnitude-l2 at 50%"]
    rows = bench([group], CONFIG, folder=out)
    assert [(row.model, row.batch_size) for row in rows] == [
        *(("dense", 1), ("magnitude-l2 at 25%", 1), ("magnitude-l2 at 50%", 1)),
        *(("dense", 2), ("magnitude-l2 at 25%", 2), ("magnitude-l2 at 50%", 2)),
    ]
    assert [row.widths for row in rows[:3]] == [[48, 48], [36, 36], [24, 24]]
    dense, _, half = rows[:3]
    assert dense.speedup == dense.mac_saving == 1
    assert half.mac_saving == dense.macs / half.macs > 1
    assert half.peak_bytes < dense.peak_bytes
    assert all(row.latency_ms > 0 and row.images_per_second > 0 for row in rows)
    assert json.loads((out / "bench.json").read_text(encoding="utf-8")) == [row.to_json() for row in rows]


def test_a_second_bench_measures_nothing_unless_something_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, out = open_groups([recipe_file(folder)])
    rows = bench(groups, CONFIG, folder=out)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(bench_module, "_measure", refuse)
    assert bench(groups, CONFIG, folder=out) == rows
    with pytest.raises(AssertionError, match="measured again"):
        bench(groups, CONFIG.model_copy(update={"repeats": 3}), folder=out)


def test_checkpoints_of_one_architecture_stand_beside_its_dense_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    first, second, *_ = prune_recipe(tiny_recipe(folder, score={"criteria": ["magnitude-l2"]}, compensation="none"))
    ((group,), out) = open_groups([str(first), str(second)])
    assert out == Path("runs/bench")
    assert list(group.pruned) == [str(first), str(second)]
    assert group.input_size == (3, 8, 8)
    widths = {tuple(row.widths) for row in bench([group], CONFIG, folder=out)}
    assert widths == {(48, 48), (36, 36), (24, 24)}
    (again,), same = open_groups([str(folder / "run")])  # the run folder of that recipe
    assert list(again.pruned) == ["magnitude-l2 at 25%", "magnitude-l2 at 50%"]
    assert same == folder / "run"
    with pytest.raises(ValueError, match="data is neither a checkpoint that pathprune wrote nor a run folder"):
        open_groups([str(folder / "data")])
    with pytest.raises(ValueError, match="is not empty and is no run folder; choose another with --output"):
        bench([group], CONFIG, folder=folder / "data")


def test_a_backend_that_cannot_run_is_left_out_unless_it_was_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build_runner = bench_module.build_runner

    def only_eager(*arguments: Any, backend: str) -> Any:
        if backend != "eager":
            raise BackendError(f"no {backend} today")
        return build_runner(*arguments, backend=backend)

    monkeypatch.setattr(bench_module, "build_runner", only_eager)
    monkeypatch.setattr(bench_module, "missing_packages", lambda _: [])
    groups, out = open_groups([recipe_file(folder)])
    rows = bench(groups, BenchConfig(batch_sizes=(1,), repeats=1), folder=out)
    assert {row.backend for row in rows} == {"eager"}
    assert "no compiled today" in caplog.text
    with pytest.raises(BackendError, match="no compiled today"):
        bench(groups, BenchConfig(batch_sizes=(1,), repeats=1, backends=("compiled",)), folder=out)


def test_a_saving_that_is_not_had_in_time_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, out = open_groups([recipe_file(folder)], ["prune.ratio=0.5"])
    fake_clock(monkeypatch, ms_per_neuron=0.01)
    rows = bench(groups, CONFIG, folder=out)
    assert rows[1].speedup == pytest.approx(4.96 / 4.48)
    notes = compose_bench_notes(rows)
    assert len(notes) == 2
    assert "Some of its widths are not multiples of 16: try prune.round_to=16 or 64." in notes[0]
    monkeypatch.undo()
    fake_clock(monkeypatch, ms_per_neuron=1000)
    fast = bench(groups, CONFIG.model_copy(update={"repeats": 5}), folder=out)
    assert compose_bench_notes(fast) == []
    section = build_bench_page(fast).sections[0]
    table = next(part for part in section.parts if isinstance(part, Table))
    assert len(table.rows) == len(fast)
    figure = next(part for part in section.parts if isinstance(part, Figure))
    assert len(figure.panels) == 1
    assert "<svg" in render(build_bench_page(fast))
    console = Console(width=160, record=True)
    console.print(build_bench_table(fast))
    assert "2.00×" in console.export_text()


def test_the_command_prints_the_table_and_mistakes_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--batch-sizes", "1", "--backends", "eager", "--repeats", "2"]
    command = ["pathprune", "bench", recipe_file(folder), "prune.ratio=0.5", *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert "magnitude-l2 at 50%" in capsys.readouterr().out
    assert (folder / "run" / "bench.html").exists()
    for wrong, message in (("--backends=tensorrt", "--backends"), ("--device=cudda", "device 'cudda' cannot be used")):
        monkeypatch.setattr(sys, "argv", [*command, wrong])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
