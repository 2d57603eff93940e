"""Ctrl-C and mistakes in an export at the shell: exit codes, one-line errors, and no partial files."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pathprune.cli import main
from pathprune.export import exporter, formats
from tests.tiny import write_data, write_model


@pytest.fixture(autouse=True)
def enable_ctrl_c() -> Iterator[None]:
    """Enable SIGINT, which shells disable in background processes and so in these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a model, data, an earlier export, and a folder for temporary files; enter the folder around them."""
    write_model(tmp_path / "model")
    write_data(tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text("earlier")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    options = ["--data", "data", "--num-images", "3", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["pathprune", "export", *arguments, *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def interrupt_after(function: Callable[..., Any]) -> Callable[..., Any]:
    def run_and_interrupt(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)

    return run_and_interrupt


@pytest.mark.parametrize(
    ("owner", "name"),
    [(formats, "write_onnx"), (formats, "_quantize"), (exporter, "time_in_turns"), (exporter, "write_text")],
)
def test_ctrl_c_keeps_the_earlier_export_and_leaves_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], owner: Any, name: str
) -> None:
    before = {file: file.is_dir() or file.read_bytes() for file in folder.rglob("*")}
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, interrupt_after(getattr(owner, name)))
        assert export(patched, "model", "--onnx", "--int8", "--output", "out") == 130
    assert {file: file.is_dir() or file.read_bytes() for file in folder.rglob("*")} == before
    assert "interrupted: all files are complete" in capsys.readouterr().err


def test_the_same_command_again_replaces_its_export(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        (folder / "out" / "model.onnx").write_text("from an earlier export")
        assert export(monkeypatch, "model", "--torch-export", "--output", "out") == 0
        assert sorted(file.name for file in (folder / "out").iterdir()) == ["export.json", "model.pt2"]
    assert sorted(file.name for file in folder.iterdir()) == ["data", "model", "out", "temporary"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere", "--onnx"], "folder nowhere does not exist; pass an existing folder"),
        (["data", "--onnx"], "data holds no weights; it needs one of model.safetensors"),
        (["model", "--onnx", "--output", "data"], "data exists and is no earlier export; choose a new or empty"),
        (["model", "--onnx", "--output", "model/config.json"], "exists and is no earlier export"),
        (["model", "--onnx", "--output", "model/config.json/out"], "File exists: 'model/config.json'"),
        (["model", "--onnx", "--output", "/proc/out"], "No such file or directory: '/proc/.out.part'"),
        (["model", "--onnx", "--split", "validation"], "split 'validation' of data source"),
    ],
)
def test_a_mistake_gives_one_line_and_writes_nothing(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    before = set(folder.rglob("*"))
    assert export(monkeypatch, *arguments) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in error
    assert set(folder.rglob("*")) == before
