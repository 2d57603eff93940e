"""Progress bars on standard error with images per second and remaining time; hidden without a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:  # `pathprune --help` imports this module and must not wait for torch
    from torch import Tensor

console = Console(stderr=True)


class _ImagesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} images/s", style="progress.data.speed")


def image_progress(*, disable: bool = False) -> Progress:
    """Return a progress display that counts images."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _ImagesPerSecond(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=disable or not console.is_terminal,
    )


@dataclass(frozen=True)
class TrackedBatches:
    """Re-iterable batches that show a progress bar of `num_images` while they are iterated."""

    batches: Iterable[tuple[Tensor, Tensor]]
    description: str
    num_images: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with image_progress() as progress:
            task = progress.add_task(self.description, total=self.num_images, note="")
            for images, labels in self.batches:
                yield images, labels
                progress.advance(task, len(labels))
