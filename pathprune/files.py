"""Files and folders that appear whole or not at all, whenever the process that writes them is stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which takes `target`'s place, on the disk too, when all went well.

    Otherwise it is removed, and `target` is as it was. The folder of `target` must exist. One writer at a time: what a
    killed one left unfinished is removed by the next.
    """
    part = target.with_name(f".{target.name}.part")
    remove(part)
    try:
        yield part
        _make_readable(part)
        for path in [*part.rglob("*"), part]:
            _flush(path)
        if target.is_dir():  # a folder with content cannot be replaced in one step
            old = target.with_name(f".{target.name}.old")
            remove(old)
            target.rename(old)
            part.rename(target)
            remove(old)
        else:
            part.replace(target)
        _flush(target.parent)
    finally:
        remove(part)


def write_text(target: Path, text: str) -> None:
    """Write text, all or nothing, and the folder it goes to where there is none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as part:
        part.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _make_readable(path: Path) -> None:
    """Give `path` and what is in it the usual permissions: safetensors files are the owner's alone at first."""
    mask = os.umask(0)
    os.umask(mask)
    for file in [path, *path.rglob("*")]:
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)


def _flush(path: Path) -> None:
    """Have what the system holds of a file or folder written to the disk, so that a power cut does not undo it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
