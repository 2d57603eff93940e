"""Files and folders are whole or absent, whatever happens while they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathprune.files import write_text, written_whole


def content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_file_takes_the_place_of_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "old")
    write_text(tmp_path / "new" / "a.txt", "new")
    assert content(tmp_path) == {"new/a.txt": "new"}


def test_a_folder_takes_the_place_of_the_old_one_with_all_that_was_in_it(tmp_path: Path) -> None:
    for names in (("a", "b"), ("c",)):
        with written_whole(tmp_path / "folder") as part:
            part.mkdir()
            for name in names:
                (part / name).write_text(name)
    assert content(tmp_path) == {"folder/c": "c"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_what_was_there_stays_when_writing_is_stopped(tmp_path: Path, stop: type[BaseException]) -> None:
    def stopped() -> None:
        with written_whole(tmp_path / "a.txt") as part:
            part.write_text("ne")
            raise stop

    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(stop):
        stopped()
    assert content(tmp_path) == {"a.txt": "old"}


def test_what_a_killed_process_left_is_taken_away(tmp_path: Path) -> None:
    left = tmp_path / ".folder.part"
    left.mkdir()
    (left / "rest").write_text("of a killed process")
    with written_whole(tmp_path / "folder") as part:
        part.mkdir()
        (part / "a").write_text("new")
    assert content(tmp_path) == {"folder/a": "new"}


def test_others_may_read_what_a_library_wrote_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    with written_whole(tmp_path / "private") as part:
        part.write_text("")
        part.chmod(0o600)
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "usual").stat().st_mode
