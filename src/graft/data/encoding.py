"""One source -> its tokenised rows, taken from the cache where they are there.

Rows are read, encoded and written a batch at a time: the tokens of a file are never all in Python's
memory. What is learned from a row is up to its task (`tasks`), joining sources to `prepare`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa

from graft.config import TaskType
from graft.data.cache import Cache, Entry, cache_folder
from graft.data.config import DataConfig
from graft.data.fingerprint import file_sha256, tokens_key
from graft.data.formats import find_format, read_batches
from graft.data.rows import Rows
from graft.data.sources import Source, read_source
from graft.data.tasks import Example, Task, make_task
from graft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedSource", "Tell", "encode_source"]

_BATCH = 1000  # rows to a call of the tokenizer
_PATIENCE = 20.0  # seconds after which people like to hear that it goes on

Tell = Callable[[str], None]
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class EncodedSource:
    """The examples that came of a source, on disk where they are cached.

    Attributes:
        source: Where they came from.
        format: The format that was found or given.
        chat_template: What rendered the turns; None where texts are taken as they stand.
        limit: Most tokens in an example.
        parts_rows: Whether the examples of one row may be parted.
        rows: The task's columns, labels as they were read, and for each example `row`, the index of
            its row in the source, `truncated`, whether it was cut to the limit, and `answer_cut`,
            whether something to learn was lost by that.
        dropped: The index of its row for each example in which nothing was left to learn.
        rows_read: Rows in the source.
        cached: Whether an earlier run had encoded them.
        sha256: Digest of each file.
    """

    source: Source
    format: str
    chat_template: str | None
    limit: int
    parts_rows: bool
    rows: datasets.Dataset
    dropped: list[int]
    rows_read: int
    cached: bool
    sha256: dict[str, str]


def encode_source(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    task_type: TaskType,
    tell: Tell | None = None,
) -> EncodedSource:
    """Read and tokenise `source`, or find that this was done before.

    Args:
        source: Its files are there.
        tokenizer: The base model's; one that is written in Python is not cached.
        config: The `data:` section: how long, what is learned, whether to cache.
        task_type: What the rows are for.
        tell: Hears, in a line, what is being done.

    Raises:
        DataError: Files, columns or rows that cannot be used, or no room for the cache.
    """
    tell = tell or _silent
    digests = [file_sha256(path) for path in source.files]
    key = None
    if config.use_cache:
        key = tokens_key(source, digests, tokenizer, config, task_type)
    store = Cache(cache_folder())
    found = store.read(key) if key else None
    if found is not None:
        tell(f"{_rows(found.about['rows_read'])} of {source.name}: tokens from the cache")
    entry = found or _make(source, tokenizer, config, task_type, key, store, tell)
    about = {name: value for name, value in entry.about.items() if name != "bytes"}
    return EncodedSource(
        source=source,
        rows=entry.rows,
        cached=found is not None,
        sha256=dict(zip(map(str, source.files), digests, strict=True)),
        **about,
    )


def _make(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    task_type: TaskType,
    key: str | None,
    store: Cache,
    tell: Tell,
) -> Entry:
    rows = read_source(source)
    format_name = find_format(rows, source.format, task_type)
    task = make_task(tokenizer, config, format_name, task_type)
    encoding = _Encoding(task, rows, source.max_rows)
    tell(f"tokenising {_rows(len(rows.items))} of {source.name}")
    batches = encoding.batches(tell)
    with _all_cores():
        if key is None:
            table = pa.Table.from_batches(batches)
            return Entry(datasets.Dataset(table), encoding.about())
        try:
            return store.write(key, batches, encoding.about)
        except OSError as error:
            raise DataError(
                f"Tokenised rows cannot be kept in {store.folder}: {error.strerror or error}. Set "
                "GRAFT_CACHE to a folder with room, or use_cache: false in data."
            ) from None


class _Encoding:
    """The examples of a source, while they are made."""

    def __init__(self, task: Task, rows: Rows, most: int | None) -> None:
        self.task = task
        self.rows = rows
        # One text may become many blocks: then these count.
        self.most = most if task.parts_rows else None
        self.dropped: list[int] = []

    def about(self) -> dict[str, Any]:
        """What is to be kept beside the examples."""
        return {
            "format": self.task.format,
            "chat_template": self.task.chat_template,
            "limit": self.task.limit,
            "parts_rows": self.task.parts_rows,
            "dropped": self.dropped,
            "rows_read": len(self.rows.items),
        }

    def batches(self, tell: Tell) -> Iterator[pa.RecordBatch]:
        """The examples, as Arrow; at least one batch."""
        made, empty = 0, True
        told = time.monotonic()
        read = read_batches(self.rows, self.task.read, _BATCH)
        for done, examples, rows in _ahead(self._encode, read):
            if self.most is not None:
                examples, rows = examples[: self.most - made], rows[: self.most - made]
            if examples:
                made, empty = made + len(examples), False
                yield _batch(examples, rows)
            if time.monotonic() - told > _PATIENCE:
                told = time.monotonic()
                tell(f"tokenised {done:,} of {len(self.rows.items):,} rows")
            if made == self.most:
                break
        if empty:
            nothing = np.zeros(0, np.int32)
            yield _batch([Example({"input_ids": nothing, "labels": nothing})], [0]).slice(0, 0)

    def _encode(self, read: tuple[int, list[Any]]) -> tuple[int, list[Example], list[int]]:
        """How many rows are done with these, the examples, and the row of each."""
        first, items = read
        examples: list[Example] = []
        rows: list[int] = []
        for row, made in enumerate(self.task.encode(items), start=first):
            for example in made:
                if example is None:
                    self.dropped.append(row)
                else:
                    examples.append(example)
                    rows.append(row)
        return first + len(items), examples, rows


def _ahead(function: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
    """`function` of each, in a thread that works on one while `given` makes the next.

    Tokenizers leave Python to others while they work, so that chat templates can render meanwhile.
    """
    with ThreadPoolExecutor(1) as worker:
        before = None
        for item in given:
            made = worker.submit(function, item)
            if before is not None:
                yield before.result()
            before = made
        if before is not None:
            yield before.result()


def _batch(examples: list[Example], rows: list[int]) -> pa.RecordBatch:
    columns = {
        name: _array([example.columns[name] for example in examples])
        for name in examples[0].columns
    }
    columns["row"] = pa.array(rows, pa.int32())
    for name in ("truncated", "answer_cut"):
        columns[name] = pa.array([getattr(example, name) for example in examples], pa.bool_())
    return pa.RecordBatch.from_pydict(columns)


def _array(values: list[Any]) -> pa.Array:
    if isinstance(values[0], np.ndarray):
        offsets = np.zeros(len(values) + 1, np.int32)
        np.cumsum([len(value) for value in values], out=offsets[1:])
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values)))
    if isinstance(values[0], list):  # a tag for each token
        return pa.array(values, pa.list_(pa.string()))
    return pa.array(values)


@contextmanager
def _all_cores() -> Iterator[None]:
    """Lets tokenizers use every core, which they must not where a process may fork later."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _silent(text: str) -> None:
    """Nobody listens."""
