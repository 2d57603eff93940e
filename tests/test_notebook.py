"""The quickstart notebook runs, and ends with the same kinds of output as the committed one."""

from __future__ import annotations

import runpy
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "quickstart.ipynb"


def kinds(notebook: nbformat.NotebookNode) -> list[list[str]]:
    return [
        sorted(key for output in cell.outputs for key in output.get("data", {"stream": ""}))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.timeout(270)
def test_the_notebook_runs(tmp_path: Path) -> None:
    script = runpy.run_path(str(NOTEBOOK.parent / "_notebook.py"))
    executed = script["execute"](tmp_path)
    script["shrink"](executed)
    committed = nbformat.read(NOTEBOOK, as_version=4)
    assert kinds(executed) == kinds(committed)
    assert (tmp_path / "quickstart-pruned" / "model.safetensors").exists()
    (report,) = [cell.outputs[0].text for cell in executed.cells if "top1_ci(dense)" in cell.source]
    kept = [float(line.split("keeps")[1].split("%")[0]) for line in report.splitlines() if "keeps" in line]
    assert len(kept) == 8
    assert min(kept) > 50  # chance keeps 13 %
    assert NOTEBOOK.stat().st_size < 100_000
