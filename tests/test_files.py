"""Files and directories are written whole or not at all, whatever interrupts the writer."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathprune.files import write_atomically, write_text


def read_files(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_file_replaces_the_old_one_and_leaves_no_other_file(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "old")
    write_text(tmp_path / "new" / "a.txt", "new")
    assert read_files(tmp_path) == {"new/a.txt": "new"}


def test_a_directory_replaces_the_old_one_with_all_its_content(tmp_path: Path) -> None:
    for names in (("a", "b"), ("c",)):
        with write_atomically(tmp_path / "folder") as part:
            part.mkdir()
            for name in names:
                (part / name).write_text(name)
    assert read_files(tmp_path) == {"folder/c": "c"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_the_old_content_stays_when_writing_is_interrupted(tmp_path: Path, stop: type[BaseException]) -> None:
    def write_half() -> None:
        with write_atomically(tmp_path / "a.txt") as part:
            part.write_text("ne")
            raise stop

    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(stop):
        write_half()
    assert read_files(tmp_path) == {"a.txt": "old"}


def test_the_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".folder.part"
    leftover.mkdir()
    (leftover / "rest").write_text("of a killed process")
    with write_atomically(tmp_path / "folder") as part:
        part.mkdir()
        (part / "a").write_text("new")
    assert read_files(tmp_path) == {"folder/a": "new"}


def test_files_that_a_library_wrote_for_their_owner_alone_get_default_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    with write_atomically(tmp_path / "private") as part:
        part.write_text("")
        part.chmod(0o600)
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "usual").stat().st_mode
