"""Entries that stay, entries that go, and entries that cannot be trusted."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from graft.data.cache import Cache, cache_folder

KEY = "0" * 64


def batches(*parts: list[int]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        yield pa.RecordBatch.from_pydict({"n": pa.array(part, pa.int32())})


def write(cache: Cache, key: str, count: int = 3) -> None:
    cache.write(key, batches(list(range(count))), lambda: {"count": count})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "a" / "b")
    assert cache.read(KEY) is None
    heard: list[int] = []

    def made() -> Iterator[pa.RecordBatch]:
        for batch in batches([1, 2], [3]):
            heard.append(len(batch))
            yield batch

    written = cache.write(KEY, made(), lambda: {"batches": heard, "name": "ü"})
    assert written.rows["n"][:] == [1, 2, 3]
    found = cache.read(KEY)
    assert found is not None
    assert found.rows["n"][:] == [1, 2, 3]
    assert found.about == written.about
    assert (found.about["batches"], found.about["name"]) == ([2, 1], "ü")  # asked for at the end
    assert names(cache.folder) == [f"{KEY}.arrow", f"{KEY}.json"]


def test_rows_are_mapped_not_loaded(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    write(cache, KEY, 1_000_000)
    before = pa.total_allocated_bytes()
    found = cache.read(KEY)
    assert found is not None
    assert found.rows[999_999] == {"n": 999_999}
    assert pa.total_allocated_bytes() - before < 100_000  # of 4 MB
    assert [entry["filename"] for entry in found.rows.cache_files] == [
        str(tmp_path / f"{KEY}.arrow")
    ]


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "noise", "told", "told_gone", "half"])
def test_a_broken_entry_is_none(damage: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    write(cache, KEY, 1000)
    rows, told = tmp_path / f"{KEY}.arrow", tmp_path / f"{KEY}.json"
    content = rows.read_bytes()
    if damage == "cut":
        rows.write_bytes(content[:-100])
    elif damage == "empty":
        rows.write_bytes(b"")
    elif damage == "gone":
        rows.unlink()
    elif damage == "noise":
        rows.write_bytes(bytes(len(content)))
    elif damage == "told":
        told.write_text("{")
    elif damage == "half":
        told.write_text(json.dumps(["bytes", len(content)]))
    else:
        told.unlink()
    assert cache.read(KEY) is None
    write(cache, KEY, 1000)
    found = cache.read(KEY)
    assert found is not None
    assert found.rows["n"][:] == list(range(1000))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield from batches([1])
        raise ValueError("a bad row")

    with pytest.raises(ValueError, match="a bad row"):
        Cache(tmp_path).write(KEY, failing(), dict)
    assert names(tmp_path) == []


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    write(Cache(tmp_path), "probe", 1000)
    size = (tmp_path / "probe.arrow").stat().st_size
    for path in tmp_path.iterdir():
        path.unlink()
    cache = Cache(tmp_path, limit=3 * size)
    for age, key in enumerate(["a", "b", "c"]):
        write(cache, key, 1000)
        for path in tmp_path.glob(f"{key}.*"):
            os.utime(path, (1000 + age, 1000 + age))
    assert cache.read("a") is not None  # so that b is the oldest now
    write(cache, "d", 1000)
    assert names(tmp_path) == [f"{key}.{kind}" for key in "acd" for kind in ("arrow", "json")]
    # The newest stays, whatever its size.
    write(cache, "e", 10_000)
    assert names(tmp_path) == ["e.arrow", "e.json"]


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path) -> None:
    left, fresh = tmp_path / ".x.arrow.1.partial", tmp_path / ".x.arrow.2.partial"
    left.write_bytes(b"half")
    fresh.write_bytes(b"half")
    yesterday = time.time() - 25 * 3600
    os.utime(left, (yesterday, yesterday))
    write(Cache(tmp_path), KEY)
    assert names(tmp_path) == [fresh.name, f"{KEY}.arrow", f"{KEY}.json"]


def test_two_at_once(tmp_path: Path) -> None:
    """Both have written half of the entry when either goes on; a third reads meanwhile."""
    cache = Cache(tmp_path)
    meeting = threading.Barrier(2, timeout=30)
    read: list[object] = []

    def slowly() -> Iterator[pa.RecordBatch]:
        yield from batches([0, 1])
        meeting.wait()
        read.append(cache.read(KEY))
        meeting.wait()
        yield from batches([2])

    found: list[list[int]] = []

    def run() -> None:
        entry = cache.write(KEY, slowly(), dict)
        found.append(entry.rows["n"][:])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [None, None]
    assert found == [[0, 1, 2], [0, 1, 2]]
    assert names(tmp_path) == [f"{KEY}.arrow", f"{KEY}.json"]


def test_rows_in_use_outlive_their_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    write(cache, KEY, 100_000)
    found = cache.read(KEY)
    assert found is not None
    for path in tmp_path.iterdir():
        path.unlink()
    assert found.rows["n"][:] == list(range(100_000))


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GRAFT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "graft"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "graft"
    monkeypatch.setenv("GRAFT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
