"""Functions that tests put in place of expensive steps, and a launcher of two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from pathprune.stages import checkpoints, evaluation, latency, mining, pruning, scoring, training

# the stage that calls each expensive function
STAGES = {
    "locate_paths": mining,
    "collect_statistics": scoring,
    "score": scoring,
    "prune": pruning,
    "evaluate_model": evaluation,
    "save_pruned": checkpoints,
    "measure_latency": latency,
    "train": training,
}


def refuse(*_: object, **__: object) -> None:
    """Fail where a stored result should have been read."""
    raise AssertionError("computed again")


def refuse_steps(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make these expensive functions fail; all of them where none is named."""
    for name in names or STAGES:
        monkeypatch.setattr(STAGES[name], name, refuse)


def launch(*arguments: str) -> None:
    """Run the command in two processes; a deadlock fails after four minutes."""
    # accelerate's launcher starts several CPU processes through MPI only, and otherwise silently a single one
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    started = subprocess.Popen(
        [*command, "-m", "pathprune", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = started.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0, printed
