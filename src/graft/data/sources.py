"""Files on disk -> rows as plain dicts, each with the place it came from.

What the columns mean is left to `formats`. The readers are our own because `load_dataset` guesses
types and so changes text: a column of dates becomes timestamps, the csv cell "007" becomes 7.0, a
label "NA" becomes nothing. They also know the line of a fault, and leave no cache behind.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graft.download import LFS_POINTER
from graft.errors import DataError, did_you_mean

__all__ = ["Row", "Rows", "read_files"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of one or several files, in order.

    Attributes:
        items: One dict (column -> value) a row; rows need not have the same columns.
        files: Each file with the number of rows that came from it.
    """

    items: list[Row]
    files: list[tuple[Path, int]]

    @property
    def name(self) -> str:
        """The files, for messages."""
        first, *others = [str(path) for path, _ in self.files]
        return f"{first} (and {len(others)} more)" if others else first

    @property
    def columns(self) -> list[str]:
        """Every column that any row has, in order of appearance."""
        return list(dict.fromkeys(name for row in self.items for name in row))

    def where(self, index: int) -> str:
        """`"row 3 of FILE"` for the row `index`, counted from 1 within its file."""
        for path, count in self.files:
            if index < count:
                return f"row {index + 1} of {path}"
            index -= count
        raise IndexError(index)

    def head(self, count: int | None) -> Rows:
        """The first `count` rows; all where `count` is None."""
        return self if count is None else Rows(self.items[:count], self.files)


def read_files(paths: list[str]) -> Rows:
    """Read `paths`, all of one kind, one after the other.

    Raises:
        DataError: A file that is missing, empty, broken, a Git-LFS pointer or of an unknown kind.
    """
    items: list[Row] = []
    files: list[tuple[Path, int]] = []
    for path in paths:
        _require(Path(path))
    readers = {_reader(Path(path)) for path in paths}
    if len(readers) > 1:
        raise DataError(f"Files of different kinds cannot be read together: {', '.join(paths)}.")
    for path in map(Path, paths):
        content = _content(path)
        rows = _reader(path)(path, content)
        if not rows:
            raise DataError(f"{path} is empty: expected at least one row.")
        items += rows
        files.append((path, len(rows)))
    return Rows(items, files)


def _reader(path: Path) -> Callable[[Path, bytes], list[Row]]:
    kind = path.suffix.lower()
    if kind not in _READERS:
        known = ", ".join(name.lstrip(".") for name in _READERS)
        raise DataError(f"{path} is of an unknown kind {kind!r}: expected one of {known}.")
    return _READERS[kind]


def _require(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder: name the files in it.")
    if not path.exists():
        if not path.parent.is_dir():
            raise DataError(f"{path} does not exist, and neither does the folder {path.parent}.")
        there = [entry.name for entry in path.parent.iterdir() if entry.suffix in _READERS]
        raise DataError(f"{path} does not exist.{did_you_mean(path.name, there)}")


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if content.startswith(LFS_POINTER):
        raise DataError(f"{path} is a Git-LFS pointer, not the data: run `git lfs pull` first.")
    return content


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from None


def _read_json(path: Path, content: bytes) -> list[Row]:
    """A list of objects, or one object a line, whatever the file's name says."""
    text = _decoded(path, content)
    if text.lstrip()[:1] == "[":
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from None
        numbered = [(f"row {number}", item) for number, item in enumerate(items, 1)]
    else:
        numbered = []
        # Not splitlines(): that also splits at characters JSON allows inside a string.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    numbered.append((f"line {number}", json.loads(line)))
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: not JSON: {error.msg}. "
                        "Expected one object a line, or one list of objects."
                    ) from None
    for place, item in numbered:
        if not isinstance(item, dict):
            raise DataError(f"{path}, {place}: expected an object, not {type(item).__name__}.")
    return [item for _, item in numbered]


def _read_csv(path: Path, content: bytes) -> list[Row]:
    """Comma-separated, the first line names the columns; every cell stays the text it is."""
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
    reader = csv.reader(io.StringIO(_decoded(path, content), newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path}: two columns have the same name: {', '.join(header)}.")
        for cells in reader:
            if not cells:
                continue  # an empty line
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but {len(header)} "
                    "columns are named in the first line; quote text that holds commas."
                )
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV: {error}.") from None
    return rows


def _read_parquet(path: Path, content: bytes) -> list[Row]:
    if not content:
        return []
    try:
        return pq.read_table(io.BytesIO(content)).to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{path} is not Parquet: {error}.") from None


def _read_text(path: Path, content: bytes) -> list[Row]:
    """The whole file as one long text."""
    text = _decoded(path, content)
    return [{"text": text}] if text.strip() else []


_READERS: dict[str, Callable[[Path, bytes], list[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
