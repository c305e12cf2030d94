"""Files on disk -> rows as plain dicts, read one after the other.

What the columns mean is left to `formats`. The readers are our own because `load_dataset` guesses
types and so changes text: a column of dates becomes timestamps, the csv cell "007" becomes 7.0, a
label "NA" becomes nothing. They also know the line of a fault, and leave no cache behind.

A new kind of file is one reader here and one line in `READERS`.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graft.data.rows import Row, Rows
from graft.data.sources.features import class_names, named
from graft.data.sources.squad import flattened, is_nested
from graft.download import LFS_POINTER
from graft.errors import DataError, did_you_mean

__all__ = ["READERS", "read_files", "require_file"]

_LINE = "Expected one object a line, or one list of objects."
_PACKED = {".gz": "gunzip -k", ".zip": "unzip", ".xz": "unxz -k", ".bz2": "bunzip2 -k"}
_PACKED |= {".zst": "unzstd", ".tar": "tar -xf", ".tgz": "tar -xzf"}
_CSV_FAULTS = (
    ("unexpected end", "a quote that opens here is never closed"),
    ("new-line character", "its lines end in carriage returns alone; save it with line feeds"),
    ("expected after", "a quote inside a quoted cell; write it twice"),
)
# How files begin that are not what their names say.
_BEGINNINGS = (
    (b"\x1f\x8b", "is compressed with gzip: unpack it first."),
    (b"PK\x03\x04", "is a zip archive: unpack it first."),
    (b"PAR1", "is Parquet: name it so (.parquet)."),
    (codecs.BOM_UTF16_LE, "is UTF-16 text: save it as UTF-8."),
    (codecs.BOM_UTF16_BE, "is UTF-16 text: save it as UTF-8."),
)


def read_files(paths: Sequence[str | Path], max_rows: int | None = None) -> Rows:
    """Read `paths` one after the other; nothing is read beyond the first `max_rows` rows.

    Raises:
        DataError: A file that is missing, empty, broken, a Git-LFS pointer or of an unknown kind.
    """
    items: list[Row] = []
    files: list[tuple[Path, int]] = []
    for path in map(Path, paths):
        require_file(path)
        _check_beginning(path)
        before = len(items)
        try:
            items.extend(islice(READERS[path.suffix.lower()](path), _rest(max_rows, before)))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
        if len(items) == before:
            raise DataError(f"{path} is empty: expected at least one row.")
        files.append((path, len(items) - before))
        if _rest(max_rows, len(items)) == 0:
            break
    return Rows(items, files)


def require_file(path: Path) -> None:
    """Refuse what is no file, or of no kind that can be read, with what is there instead."""
    if path.is_dir():
        raise DataError(f"{path} is a folder: name the files in it.")
    if not path.exists():
        if not path.parent.is_dir():
            raise DataError(f"{path} does not exist, and neither does the folder {path.parent}.")
        there = [entry.name for entry in path.parent.iterdir() if entry.suffix in READERS]
        raise DataError(f"{path} does not exist.{did_you_mean(path.name, there)}")
    kind = path.suffix.lower()
    if kind in _PACKED:
        raise DataError(f"{path} is compressed ({kind}): unpack it first: {_PACKED[kind]} {path}")
    if kind not in READERS:
        known = ", ".join(name.lstrip(".") for name in READERS)
        raise DataError(f"{path} is of an unknown kind {kind!r}: expected one of {known}.")


def _rest(most: int | None, count: int) -> int | None:
    return None if most is None else most - count


def _check_beginning(path: Path) -> None:
    try:
        with path.open("rb") as file:
            beginning = file.read(1024)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if beginning.startswith(LFS_POINTER):
        raise DataError(f"{path} is a Git-LFS pointer, not the data: run `git lfs pull` first.")
    if path.suffix.lower() == ".parquet":
        return
    for mark, what in _BEGINNINGS:
        if beginning.startswith(mark):
            raise DataError(f"{path} {what}")
    if b"\0" in beginning:  # UTF-16 without its mark, or no text at all
        raise DataError(f"{path} is not UTF-8 text (it holds zero bytes): save it as UTF-8.")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, each with its end. Only line feeds end one: JSON allows the other
    characters that `str.splitlines` splits at inside a string."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(
                    f"{path}, line {number}: not UTF-8 text; save the file as UTF-8."
                ) from None


def _read_json(path: Path) -> Iterator[Row]:
    """A list of objects, or one object a line, whatever the file's name says."""
    lines = enumerate(_lines(path), 1)
    number, line = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if line.lstrip().startswith("[") or line.strip() == "{":
        text = "".join([line, *(line for _, line in lines)])
        yield from _document(path, text, number - 1)
    else:
        yield from _object_lines(path, chain([(number, line)], lines))


def _object_lines(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        if line.strip():
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                cut = "" if line.endswith("\n") else _cut_hint(line)
                hint = (cut or f" {_LINE}") if isinstance(error, json.JSONDecodeError) else ""
                raise DataError(f"{path}, line {number}: {_fault(error)}{hint}") from None
            if not isinstance(item, dict):
                found = _name_of(item)
                raise DataError(f"{path}, line {number}: expected an object, not {found}.")
            if _may_have_halves(line):
                _require_whole(item, f"{path}, line {number}")
            if is_nested(item):
                yield from flattened(item, f"{path}, line {number}")
            else:
                yield item


def _document(path: Path, text: str, skipped: int) -> Iterator[Row]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        line = error.lineno + skipped
        raise DataError(f"{path}, line {line}: {_fault(error)}{_cut_hint(text)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {_fault(error)}") from None
    if isinstance(document, dict):
        if not is_nested(document):
            keys = ", ".join(list(document)[:5])
            raise DataError(f"{path} is one object over several lines (keys: {keys}). {_LINE}")
        yield from flattened(document, str(path))
        return
    halves = _may_have_halves(text)
    for number, item in enumerate(document, 1):
        if not isinstance(item, dict):
            found = _name_of(item)
            raise DataError(f"{path}, row {number}: expected an object, not {found}.")
        if halves:
            _require_whole(item, f"{path}, row {number}")
        yield item


def _may_have_halves(text: str) -> bool:
    return "\\ud" in text or "\\uD" in text  # the escapes of characters in two halves


def _require_whole(item: Any, where: str) -> None:
    """Refuse half of such a character: no tokenizer takes it."""
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):x}"
        raise DataError(
            f"{where}: {half} is half of a character: write the other half too, or remove it."
        ) from None


def _cut_hint(text: str) -> str:
    whole = text.rstrip().endswith(("]", "}"))
    return "" if whole else " The file may be cut off at its end: get it again."


def _fault(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "not JSON that can be read: nested too deep."
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' starting at')}."
    return f"not JSON that can be read: {error}."


def _name_of(item: Any) -> str:
    names = {str: "text", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(item), "a number")


def _read_csv(path: Path) -> Iterator[Row]:
    """Comma-separated, the first line names the columns; every cell stays the text it is."""
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
    reader = csv.reader(_lines(path), strict=True)
    before = 0  # lines read before the row at hand
    try:
        header = next(reader, [])
        twice = ", ".join(sorted({name for name in header if header.count(name) > 1}))
        if twice:
            raise DataError(f"{path}: two columns have the same name: {twice}; rename one.")
        for mark, called in ((";", "semicolons"), ("\t", "tabs")):
            if len(header) == 1 and mark in header[0]:
                raise DataError(
                    f"{path} separates its cells by {called}: save it with commas instead."
                )
        before = reader.line_num
        for cells in reader:
            if cells and len(cells) != len(header):
                count = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
                more = len(cells) > len(header)
                cure = "quote text that holds commas" if more else "fill in what lacks"
                raise DataError(
                    f"{path}, line {before + 1}: {count}, but {len(header)} columns are named in "
                    f"the first line; {cure}."
                )
            before = reader.line_num
            if cells:  # else an empty line
                yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        what = next((said for sign, said in _CSV_FAULTS if sign in str(error)), str(error))
        raise DataError(f"{path}, line {before + 1}: not CSV: {what}.") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    if path.stat().st_size == 0:
        return
    try:
        with pq.ParquetFile(path) as file:
            names = class_names(file.schema_arrow.metadata)
            nested = [part.name for part in file.schema_arrow if pa.types.is_nested(part.type)]
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    own = {column: _without_nulls(row[column]) for column in nested}
                    yield named(row | own, names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{path} is not Parquet, or damaged: {why}. Get it again.") from None


def _without_nulls(value: Any) -> Any:
    """`value` without keys that hold nothing: in Parquet every object of a column has the keys of
    all, so a tool would seem to be called with the arguments of every other."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _read_text(path: Path) -> Iterator[Row]:
    """The whole file as one long text."""
    text = "".join(_lines(path))
    if text.strip():
        yield {"text": text}


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
