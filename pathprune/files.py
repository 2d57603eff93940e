"""Atomic writes of files and directories: a process killed while writing leaves the old content in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(target: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or directory, and move it to `target` when the block ends without an error.

    After an error the temporary path is removed and `target` keeps its old content. The content is fsynced before the
    move. The parent directory of `target` must exist. Two processes must not write the same target at the same time:
    each removes the temporary path that an earlier, killed process left behind.
    """
    part = target.with_name(f".{target.name}.part")
    remove(part)
    try:
        yield part
        _apply_umask(part)
        for path in [*part.rglob("*"), part]:
            _fsync(path)
        if target.is_dir():  # rename() cannot replace a directory with content
            old = target.with_name(f".{target.name}.old")
            remove(old)
            target.rename(old)
            part.rename(target)
            remove(old)
        else:
            part.replace(target)
        _fsync(target.parent)
    finally:
        remove(part)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically; create missing parent directories."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(target) as part:
        part.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or a directory with its content; do nothing if the path does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _apply_umask(path: Path) -> None:
    """Set the permissions of `path` and its content to the default: safetensors creates files with mode 0600."""
    mask = os.umask(0)
    os.umask(mask)
    for file in [path, *path.rglob("*")]:
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)


def _fsync(path: Path) -> None:
    """Flush a file or directory to disk so that it survives power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
