"""Tables of tokenised rows kept on disk for the next run, each under the key of what it is made of.

An entry is two files: `KEY.arrow`, an Arrow stream that is mapped into memory when it is read, and
`KEY.json`, what belongs to it, written last. Where one is missing or does not fit the other there
is no entry, and its rows are made again. Several processes may read and write at once: whoever
makes an entry makes the same one. What is in a key is left to `fingerprint`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from graft.atomic import whole_file, write_text

if TYPE_CHECKING:
    import datasets

__all__ = ["LIMIT", "Cache", "Entry", "cache_folder"]

LIMIT = 10 * 2**30  # bytes of all entries; beyond it those go that were not used for longest
_ABANDONED = 24 * 3600  # seconds after which a file that no entry has is nobody's work any more


class Entry(NamedTuple):
    """The rows under a key, and what was told of them."""

    rows: datasets.Dataset
    about: dict[str, Any]


def cache_folder() -> Path:
    """`$GRAFT_CACHE`, else `graft` in `$XDG_CACHE_HOME` or `~/.cache`."""
    given = os.environ.get("GRAFT_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "graft"


class Cache:
    """Entries in a folder.

    Args:
        folder: Made when the first entry is written.
        limit: Bytes that all entries together may take; the newest stays whatever its size.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder = folder
        self.limit = limit

    def read(self, key: str) -> Entry | None:
        """The entry `key`, or None where it is not there or broken."""
        rows, told = self._paths(key)
        try:
            about = json.loads(told.read_text(encoding="utf-8"))
            if rows.stat().st_size != about["bytes"]:
                return None
            found = _mapped(rows)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None
        with suppress(OSError):  # somebody else's cache may be read, too
            os.utime(told)  # used now
        return Entry(found, about)

    def write(
        self, key: str, batches: Iterable[pa.RecordBatch], about: Callable[[], dict[str, Any]]
    ) -> Entry:
        """Write `batches` under `key`, one by one, and read them back.

        Args:
            key: A file name.
            batches: At least one.
            about: What to keep beside them (JSON), asked for when `batches` has ended.

        Raises:
            OSError: The folder cannot be made or written.
        """
        rows, told = self._paths(key)
        with whole_file(rows) as partial:
            _write_stream(partial, batches)
            size = partial.stat().st_size
        kept = {"bytes": size, **about()}
        write_text(told, json.dumps(kept, ensure_ascii=False))
        self._make_room(key)
        return Entry(_mapped(rows), kept)

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.arrow", self.folder / f"{key}.json"

    def _make_room(self, newest: str) -> None:
        """Remove what was not used for longest until the rest fits, and what nobody will finish."""
        used: dict[str, float] = {}
        sizes: dict[str, int] = {}
        now = time.time()
        for path in self.folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process was faster
            if path.suffix == ".json":
                used[path.stem] = status.st_mtime
            elif path.suffix == ".arrow":
                sizes[path.stem] = status.st_size
                used.setdefault(path.stem, status.st_mtime)  # one that is being written
            elif path.suffix == ".partial" and now - status.st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)
        total = sum(sizes.values())
        for key in sorted(sizes, key=used.__getitem__):
            if key == newest or total <= self.limit:
                continue
            for path in reversed(self._paths(key)):
                path.unlink(missing_ok=True)
            total -= sizes[key]


def _mapped(path: Path) -> datasets.Dataset:
    import datasets  # a second that who only asks for the folder need not wait

    return datasets.Dataset.from_file(str(path))


def _write_stream(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    rest = iter(batches)
    first = next(rest)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
        for batch in chain([first], rest):
            writer.write_batch(batch)
