"""Set before any library reads it: tests are offline, leave nothing in the user's caches, and use one thread each.

Their models are so small that a second thread costs more than it does.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pathprune.pruning import list_compensations
from pathprune.scoring import list_criteria

_scratch = tempfile.TemporaryDirectory(prefix="pathprune-tests-")
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": _scratch.name, "MPLCONFIGDIR": _scratch.name}


# tests forget a third party's criteria by restoring the registries, which must hold the built-in ones before
list_criteria()
list_compensations()


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> Iterator[None]:
    """Forget Accelerate's state after every test: it keeps one precision per process."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a tiny model and tiny data."""
    from tiny import write_data, write_model

    write_data(tmp_path / "data")
    write_model(tmp_path / "model")
    return tmp_path
