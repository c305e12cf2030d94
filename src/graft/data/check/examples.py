"""The examples of all sources as flat arrays, so that 100,000 of them are looked at in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from zlib import crc32

import numpy as np
import pyarrow as pa

from graft.config import TaskType
from graft.data.check.report import SHOWN, place_of
from graft.data.encoding import EncodedSource
from graft.data.rows import Rows
from graft.data.template import IGNORED

__all__ = ["Examples", "gather"]


@dataclass(frozen=True)
class Examples:
    """N examples with T tokens in all, and R tokens to learn from.

    Attributes:
        task_type: What they are for.
        ids: `[T]`, the inputs, one after the other.
        bounds: `[N + 1]`, where each input begins, and the last ends.
        answers: `[R]`, the ids that answers are learned from: the inputs' own for CAUSAL_LM, the
            targets' for SEQ_2_SEQ_LM, else none.
        answer_bounds: `[N + 1]`.
        learned: `[R]`, whether the token is learned.
        prompt: `[T]`, whether the token is of what is asked.
        labels: SEQ_CLS: `[N]`; TOKEN_CLS: `[T]`, None where nothing is learned; else None.
        digests: `[N]`, alike for examples that are alike in all.
        prompts: `[N]`, alike for examples of the same prompt; None where everything is learned.
        truncated: `[N]`, whether it was cut.
        answer_cut: `[N]`, whether something to learn was lost by that.
        blocks: `[N]`, whether it is a block of plain text.
        source: `[N]`, the number of its source.
        row: `[N]`, the index of its row in the source.
        rows: Each source, to tell the places.
        held: `[N]`, whether it is to evaluate on.
    """

    task_type: TaskType
    ids: np.ndarray
    bounds: np.ndarray
    answers: np.ndarray
    answer_bounds: np.ndarray
    learned: np.ndarray
    prompt: np.ndarray
    labels: pa.Array | None
    digests: list[bytes]
    prompts: list[bytes | None]
    truncated: np.ndarray
    answer_cut: np.ndarray
    blocks: np.ndarray
    source: np.ndarray
    row: np.ndarray
    rows: Sequence[Rows]
    held: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @property
    def lengths(self) -> np.ndarray:
        """`[N]`: tokens of each, those of its target too."""
        lengths = np.diff(self.bounds)
        if self.task_type is TaskType.SEQ_2_SEQ_LM:
            lengths = lengths + np.diff(self.answer_bounds)
        return lengths

    def count(self, tokens: np.ndarray, bounds: np.ndarray | None = None) -> np.ndarray:
        """`[N]`: how many of the marked tokens each example has."""
        total = np.concatenate([[0], np.cumsum(tokens)])
        return np.diff(total[self.bounds if bounds is None else bounds])

    def where(self, chosen: np.ndarray) -> tuple[str, ...]:
        """The places of the first examples that are marked."""
        return tuple(dict.fromkeys(map(self.place, np.flatnonzero(chosen)[:SHOWN].tolist())))

    def place(self, index: int) -> str:
        """`FILE:ROW`, where example `index` came from."""
        return place_of(self.rows[self.source[index]], int(self.row[index]))


def gather(
    sources: Sequence[EncodedSource], rows: Sequence[Rows], held: np.ndarray, task_type: TaskType
) -> Examples:
    """The examples of `sources`, whose rows in the files are `rows`."""
    tables = [encoded.rows.with_format("arrow")[:] for encoded in sources]
    lengths = [len(table) for table in tables]
    ids, bounds = _flat([table["input_ids"] for table in tables])
    prompt = np.ones(len(ids), bool)
    answers, answer_bounds, learned = ids[:0], np.zeros(len(bounds), np.int64), np.zeros(0, bool)
    labels: pa.Array | None = None
    said: list[bytes]  # what is learned, as bytes
    if task_type is TaskType.QUESTION_ANS:
        columns = [_joined([table[n] for table in tables]) for n in _SPAN]
        said = [b"%d %d" % span for span in zip(*(c.to_pylist() for c in columns), strict=True)]
    elif task_type is TaskType.SEQ_CLS:
        labels = names = _joined([table["labels"] for table in tables])
        said = [str(label).encode() for label in names.to_pylist()]
    elif task_type is TaskType.TOKEN_CLS:
        labels = pa.concat_arrays([c.flatten() for t in tables for c in t["labels"].chunks])
        said = _digests(_codes(labels), bounds)
    elif task_type is TaskType.SEQ_2_SEQ_LM:
        answers, answer_bounds = _flat([table["labels"] for table in tables])
        learned = np.ones(len(answers), bool)
        said = _digests(answers, answer_bounds)
    else:
        targets, answer_bounds = _flat([table["labels"] for table in tables])
        answers, learned = ids, targets != IGNORED
        prompt = ~learned
        said = _digests(targets, answer_bounds)
        learned = learned.copy()
        learned[bounds[:-1]] = False  # no token comes before the first, so nothing learns it
    asked = np.concatenate([[0], np.cumsum(prompt)])[bounds]
    prompts = _digests(ids[prompt], asked)
    return Examples(
        task_type=task_type,
        ids=ids,
        bounds=bounds,
        answers=answers,
        answer_bounds=answer_bounds,
        learned=learned,
        prompt=prompt,
        labels=labels,
        digests=[a + b for a, b in zip(_digests(ids, bounds), said, strict=True)],
        prompts=[d if n > 1 else None for d, n in zip(prompts, np.diff(asked), strict=True)],
        truncated=np.concatenate([table["truncated"].to_numpy() for table in tables]),
        answer_cut=np.concatenate([table["answer_cut"].to_numpy() for table in tables]),
        blocks=np.repeat([encoded.format == "text" for encoded in sources], lengths),
        source=np.repeat(np.arange(len(sources)), lengths),
        row=np.concatenate([table["row"].to_numpy() for table in tables]),
        rows=rows,
        held=held,
    )


_SPAN = ("start_positions", "end_positions")


def _joined(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    chunks = [chunk for column in columns for chunk in column.chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())


def _flat(columns: Sequence[pa.ChunkedArray]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of lists one after the other, and where each list begins and the last ends."""
    values, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
    for column in columns:
        for chunk in column.chunks:
            values.append(chunk.flatten().to_numpy())
            lengths.append(chunk.value_lengths().to_numpy())
    return np.concatenate(values), np.cumsum(np.concatenate(lengths))


def _codes(labels: pa.Array) -> np.ndarray:
    """A number for each label, the same wherever the label stands; -1 for none."""
    coded = labels.dictionary_encode()
    numbers = [crc32(str(label).encode()) for label in coded.dictionary.to_pylist()]
    indices = coded.indices.fill_null(-1).to_numpy()
    return np.array([*numbers, -1], np.int64)[indices].astype(np.int64)


def _digests(values: np.ndarray, bounds: np.ndarray) -> list[bytes]:
    data = memoryview(np.ascontiguousarray(values).tobytes())
    size = values.dtype.itemsize
    ends = (bounds * size).tolist()
    return [blake2b(data[a:b], digest_size=16).digest() for a, b in pairwise(ends)]
