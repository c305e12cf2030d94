"""The whole path: what `data:` says -> tokenised rows, ready for the collator.

Here: the sources joined, labels as numbers, what is set aside for evaluation, how often a source's
rows count, what was cut or lost. Each source by itself is `encoding`'s.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.encoding import EncodedSource, Tell, encode_source
from graft.data.sources import Source, resolve_source
from graft.data.template import IGNORED
from graft.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PreparedData", "encode_sources", "held_out", "prepare_data"]

_NAMED = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)  # their labels are text


@dataclass(frozen=True)
class PreparedData:
    """Tokenised rows.

    Attributes:
        train: Columns `input_ids` and `labels`. For CAUSAL_LM labels are as long as the input and
            -100 where nothing is learned; for SEQ_2_SEQ_LM they are the target's ids; for SEQ_CLS
            one index into `label_names`; for TOKEN_CLS one for each token, or -100. QUESTION_ANS
            has `start_positions` and `end_positions` instead. There may be `token_type_ids`.
        eval: The same, or None where nothing is set aside.
        label_names: SEQ_CLS, TOKEN_CLS: the labels, sorted, whole numbers by value.
        format: The format that was found or given; several where sources differ.
        chat_template: The Jinja source that rendered the turns, to be saved with the adapter; None
            where texts are taken as they stand.
        rows_read: Rows in the files, as far as they are used.
        rows_dropped: Rows in which nothing was left to learn; they are in neither set.
        rows_truncated: Rows that were cut to the length.
        tokens: Tokens to train on, in one epoch.
        sha256: Digest of each file, by its path.
    """

    train: datasets.Dataset
    eval: datasets.Dataset | None
    label_names: list[str] | None
    format: str
    chat_template: str | None
    rows_read: int
    rows_dropped: int
    rows_truncated: int
    tokens: int
    sha256: dict[str, str]


def prepare_data(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    task_type: TaskType,
    seed: int,
    tell: Tell | None = None,
) -> PreparedData:
    """Read, tokenise and split what `config` names.

    Rows are cut to `config.max_length`, or to the tokenizer's `model_max_length` where that is
    less.

    Args:
        config: The `data:` section of the run file.
        tokenizer: The base model's tokenizer.
        task_type: What the rows are for.
        seed: Decides which rows `config.eval_fraction` sets aside, where `config.eval_seed` does
            not, and which are chosen where a weight is no whole number. What comes of one row stays
            together; blocks of one text may be parted.
        tell: Hears, in a line, what is being done.

    Raises:
        DataError: Files, columns or rows that cannot be used.
    """
    learned, heldout = encode_sources(config, tokenizer, task_type, tell)
    formats = list(dict.fromkeys(encoded.format for encoded in learned))
    everything = [*learned, *heldout]
    label_names = None
    if task_type in _NAMED:
        label_names = _label_names(learned)
        learned = [_numbered(encoded, label_names) for encoded in learned]
        heldout = [_numbered(encoded, label_names) for encoded in heldout]

    rows = _joined(learned)
    aside = held_out(learned, config.eval_fraction, config.split_seed(seed))
    index = _weighted(learned, aside, seed)
    if config.eval_fraction:
        eval_rows = rows.select(np.flatnonzero(np.concatenate(aside)))
    else:
        eval_rows = _joined(heldout) if heldout else None
    templates = [encoded.chat_template for encoded in everything]
    return PreparedData(
        train=rows.select(index),
        eval=eval_rows,
        label_names=label_names,
        format=", ".join(formats),
        chat_template=next((template for template in templates if template is not None), None),
        rows_read=sum(encoded.rows_read for encoded in everything),
        rows_dropped=sum(len(encoded.dropped) for encoded in everything),
        rows_truncated=sum(int(_column(encoded, "truncated").sum()) for encoded in everything),
        tokens=int(_lengths(learned, task_type)[index].sum()),
        sha256={path: digest for encoded in everything for path, digest in encoded.sha256.items()},
    )


def encode_sources(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    task_type: TaskType,
    tell: Tell | None = None,
) -> tuple[list[EncodedSource], list[EncodedSource]]:
    """The sources to train on and those to evaluate on, each by itself, as `prepare_data` has them.

    Raises:
        DataError: Files, columns or rows that cannot be used, or a source of which nothing is left.
    """
    learned = [
        _encoded(resolve_source(given, config.dataset_dir), tokenizer, config, task_type, tell)
        for given in config.train_sources
    ]
    formats = {encoded.format for encoded in learned}
    heldout = []
    for given in config.eval_sources:
        source = resolve_source(given, config.dataset_dir)
        if source.format == "auto" and len(formats) == 1:
            source = dataclasses.replace(source, format=learned[0].format)
        heldout.append(_encoded(source, tokenizer, config, task_type, tell))
    return learned, heldout


def _encoded(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    task_type: TaskType,
    tell: Tell | None,
) -> EncodedSource:
    encoded = encode_source(source, tokenizer, config, task_type, tell)
    if not len(encoded.rows):
        raise DataError(
            f"Nothing is left to learn in the rows of {source.name} after cutting them to "
            f"{encoded.limit} tokens: raise max_length, or shorten the prompts."
        )
    return encoded


def _joined(sources: list[EncodedSource]) -> datasets.Dataset:
    rows = [encoded.rows.remove_columns(["row", "truncated", "answer_cut"]) for encoded in sources]
    return datasets.concatenate_datasets(rows)


def _column(encoded: EncodedSource, name: str) -> np.ndarray:
    return encoded.rows.data.column(name).to_numpy()


def _lengths(sources: list[EncodedSource], task_type: TaskType) -> np.ndarray:
    """Tokens of each example, with those of the decoder where there is one."""
    names = ["input_ids", "labels"] if task_type is TaskType.SEQ_2_SEQ_LM else ["input_ids"]
    return np.concatenate(
        [
            sum(chunk.value_lengths().to_numpy() for chunk in chunks)
            for encoded in sources
            for chunks in zip(*(_chunks(encoded, name) for name in names), strict=True)
        ]
    )


def _groups(encoded: EncodedSource) -> np.ndarray:
    """A number for each example, the same for those that must stay together."""
    return np.arange(len(encoded.rows)) if encoded.parts_rows else _column(encoded, "row")


def held_out(sources: list[EncodedSource], fraction: float, seed: int) -> list[np.ndarray]:
    """Which examples of each source `eval_fraction` sets aside: a mask as long as its `rows`.

    Args:
        sources: Everything to train on.
        fraction: The share of all rows together; 0 for none.
        seed: Decides which.

    Raises:
        DataError: There is one row only.
    """
    if not fraction:
        return [np.zeros(len(encoded.rows), bool) for encoded in sources]
    groups: list[np.ndarray] = []
    used = 0
    for encoded in sources:
        groups.append(used + _groups(encoded))
        used = groups[-1].max(initial=used - 1) + 1
    every = np.unique(np.concatenate(groups))
    if len(every) < 2:
        raise DataError("eval_fraction: there is one row only, and it cannot be set aside.")
    count = min(max(1, round(fraction * len(every))), len(every) - 1)
    chosen = every[random.Random(seed).sample(range(len(every)), count)]
    return [np.isin(own, chosen) for own in groups]


def _weighted(sources: list[EncodedSource], aside: list[np.ndarray], seed: int) -> np.ndarray:
    """The index of each example to train on, as often as the weight of its source says."""
    parts: list[np.ndarray] = []
    start = 0
    for number, (encoded, out) in enumerate(zip(sources, aside, strict=True)):
        kept = np.flatnonzero(~out)
        whole = int(encoded.source.weight)
        parts += [start + kept] * whole
        share = encoded.source.weight - whole
        if share:
            groups = _groups(encoded)[kept]
            every = np.unique(groups)
            count = min(max(round(share * len(every)), 1), len(every))
            chosen = np.random.default_rng([seed, number]).choice(every, count, replace=False)
            parts.append(start + kept[np.isin(groups, chosen)])
        start += len(encoded.rows)
    return np.concatenate(parts)


def _chunks(encoded: EncodedSource, name: str) -> list[pa.Array]:
    return encoded.rows.data.column(name).chunks


def _labels(encoded: EncodedSource) -> set[str]:
    labels: set[str] = set()
    for chunk in _chunks(encoded, "labels"):
        flat = chunk.flatten() if isinstance(chunk, pa.ListArray) else chunk
        labels.update(flat.unique().to_pylist())
    return labels - {None}


def _label_names(sources: list[EncodedSource]) -> list[str]:
    labels = set().union(*(_labels(encoded) for encoded in sources))
    if len(labels) < 2:
        name = ", ".join(encoded.source.name for encoded in sources)
        raise DataError(f"{name} has one label only ({labels.pop()!r}): expected two or more.")
    numbers = all(label.removeprefix("-").isdecimal() for label in labels)
    return sorted(labels, key=int) if numbers else sorted(labels)


def _numbered(encoded: EncodedSource, label_names: list[str]) -> EncodedSource:
    """`encoded` with labels as indices into `label_names`."""
    for label in sorted(_labels(encoded) - set(label_names)):
        hint = did_you_mean(label, label_names)
        raise DataError(
            f"{encoded.source.name} has the label {label!r}, which no training row has.{hint}"
        )
    index = {label: number for number, label in enumerate(label_names)}

    def numbers(labels: pa.Array) -> pa.Array:
        found = labels.dictionary_encode()
        numbered = pa.array([index[label] for label in found.dictionary.to_pylist()], pa.int32())
        return numbered.take(found.indices).fill_null(IGNORED)

    chunks: list[pa.Array] = []
    for chunk in _chunks(encoded, "labels"):
        if isinstance(chunk, pa.ListArray):
            ends = np.cumsum(chunk.value_lengths().to_numpy(), dtype=np.int32)
            offsets = pa.array(np.concatenate([np.zeros(1, np.int32), ends]))
            chunks.append(pa.ListArray.from_arrays(offsets, numbers(chunk.flatten())))
        else:
            chunks.append(numbers(chunk))
    numbered = datasets.Dataset(pa.table({"labels": pa.chunked_array(chunks)}))
    rows = [encoded.rows.remove_columns("labels"), numbered]
    return dataclasses.replace(encoded, rows=datasets.concatenate_datasets(rows, axis=1))
