"""The context of a run: the recipe, the processes, the run folder and the model, which every stage knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from pathprune.artifacts import Artifact
from pathprune.evaluation import MacCounter
from pathprune.recipe import Recipe
from pathprune.runs import RunFolder
from pathprune.stages.model import RecipeModel

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """State that all stages of a run share. `model_key` stands for the model's weights, architecture and transform."""

    recipe: Recipe
    accelerator: Accelerator
    folder: RunFolder
    model: RecipeModel
    model_key: str

    @property
    def is_main(self) -> bool:
        return self.folder.main

    def main_first(self) -> AbstractContextManager[None]:
        """Let the main process enter first; the other processes then read the files that it wrote."""
        return self.accelerator.main_process_first()  # type: ignore[no-any-return]

    def obtain_by_main(self, artifact: Artifact[T], compute: Callable[[], T]) -> T:
        """Load an artifact, or compute it in the main process; the other processes load it."""
        with self.main_first():
            return self.folder.obtain(artifact, compute)

    def obtain_by_all(self, artifact: Artifact[T], compute: Callable[[], T]) -> T:
        """Load an artifact, or compute it in all processes together; the main process stores it."""
        stored = self.folder.read(artifact)
        self.accelerator.wait_for_everyone()  # nobody writes before all have looked
        if stored is not None:
            return stored
        value = compute()
        self.folder.write(artifact, value)
        self.accelerator.wait_for_everyone()
        return value

    @contextmanager
    def timed(self, artifact: Artifact[Any]) -> Iterator[None]:
        """Record the seconds spent while open as work on `artifact`, also where it is interrupted."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.folder.add_work(artifact, seconds=time.perf_counter() - start)

    @contextmanager
    def counted(self, artifact: Artifact[Any]) -> Iterator[None]:
        """Record the seconds and this process's multiply-accumulates while open as work on `artifact`."""
        with self.timed(artifact), MacCounter() as counter:
            yield
        self.folder.add_work(artifact, macs=counter.macs)


def open_accelerator(recipe: Recipe, given: Accelerator | None = None) -> Accelerator:
    """Return an Accelerator for all of the recipe's work, or check that the given one fits the recipe.

    Accelerate keeps one precision per process. Raises `ValueError` where the process, or `given`, has another one, and
    for trackers that are not installed or not in `given`.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in recipe.trackers:
        if name not in available:
            raise ValueError(f"tracker '{name}' is not installed; installed are: {', '.join(available) or 'none'}")
    if is_initialized() and AcceleratorState().mixed_precision != recipe.mixed_precision:
        raise ValueError(
            f"mixed_precision is '{recipe.mixed_precision}' in the recipe and '{AcceleratorState().mixed_precision}' "
            "in this process's Accelerator; give both the same, or run the recipe in a process of its own"
        )
    if given is None:
        project = ProjectConfiguration(project_dir=str(recipe.folder), logging_dir=str(recipe.folder / "logs"))
        return Accelerator(
            mixed_precision=recipe.mixed_precision,
            log_with=list(recipe.trackers) or None,
            project_config=project,
            # the other processes wait while the main process mines
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))],
        )
    if len(recipe.trackers) > len(given.log_with):
        raise ValueError(f"trackers {list(recipe.trackers)} need an Accelerator with log_with={list(recipe.trackers)}")
    return given
