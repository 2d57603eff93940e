"""Output of the commands: results on standard output, messages on standard error."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pathprune.progress import console as error_console

__all__ = ["console", "error_console", "print_path", "print_run_folder"]

console = Console()
if not console.is_terminal:
    console = Console(width=120)  # a log or a pipe has no width of its own


def print_path(label: str, path: Path) -> None:
    """Print a labelled path on one line, however long it is."""
    console.print(f"{label}: {path}", soft_wrap=True)


def print_run_folder(folder: Path) -> None:
    """Print the path of the report in a run folder, or of the folder if there is no report."""
    page = folder / "report.html"
    print_path(*(("Report", page) if page.exists() else ("Results", folder)))
