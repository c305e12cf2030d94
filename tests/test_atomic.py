from __future__ import annotations

import pytest

from graft.atomic import require_place, require_room, whole_file, whole_folder, write_text
from graft.errors import ConfigError


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "best"
    for text in ("old", "new"):
        with whole_folder(target) as folder:
            (folder / "file").write_text(text)
            assert not target.exists() or (target / "file").read_text() == "old"
        assert (target / "file").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    target = tmp_path / "best"
    with whole_folder(target) as folder:
        (folder / "file").write_text("old")

    def fail() -> None:
        with whole_folder(target) as folder:
            (folder / "file").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (target / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    (tmp_path / ".best.partial").mkdir()
    (tmp_path / ".best.partial" / "junk").write_text("")
    with whole_folder(tmp_path / "best") as folder:
        assert not list(folder.iterdir())


def test_write_text_replaces(tmp_path):
    path = tmp_path / "summary.json"
    write_text(path, "old")
    write_text(path, "ü")
    assert path.read_text(encoding="utf-8") == "ü"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "rows"
    with whole_file(path) as one, whole_file(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert not path.exists()
    assert path.read_text() == "one"  # it was closed last
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "rows"
    write_text(path, "old")

    def fail() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_said_early(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be made: .*file is a file"):
        require_room(tmp_path / "file" / "runs" / "one")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    with pytest.raises(ConfigError, match="no permission"):
        require_room(locked / "run")
    require_room(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(ConfigError, match="is a folder; give the name of a file"):
        require_place(tmp_path)
    require_place(tmp_path / "new" / "file")


def test_the_folder_of_a_file_is_made(tmp_path):
    write_text(tmp_path / "new" / "folder" / "file", "text")
    assert (tmp_path / "new" / "folder" / "file").read_text() == "text"
