"""Execution of the quickstart notebook: `python docs/_notebook.py` runs it and writes its outputs back."""

from __future__ import annotations

import io
import tempfile
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image
from traitlets.config import Config

NOTEBOOK = Path(__file__).parent / "quickstart.ipynb"
COLORS = 32  # per image: a quarter of the bytes


def execute(folder: Path) -> NotebookNode:
    """Run the notebook with `folder` as working directory; raises `CellExecutionError` for a cell that fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as sockets:  # in the file system: no port that other users could reach
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        client = NotebookClient(notebook, timeout=240, config=config, resources={"metadata": {"path": str(folder)}})
        executed: NotebookNode = client.execute()
    return executed


def shrink(notebook: NotebookNode) -> None:
    """Remove warnings and metadata, and reduce the images to a palette, in place."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _reduce_colors(output.data["image/png"])
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}


def _reduce_colors(encoded: str) -> str:
    picture, small = Image.open(io.BytesIO(b64decode(encoded))), io.BytesIO()
    picture.convert("RGB").quantize(COLORS).save(small, "PNG", optimize=True)
    return b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        notebook = execute(Path(scratch))
    shrink(notebook)
    nbformat.write(notebook, NOTEBOOK)
