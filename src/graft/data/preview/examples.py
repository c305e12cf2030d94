"""Rows of a user's files, taken through the path that training takes, one by one.

Reads and encodes with what `prepare` reads and encodes with, so what is shown is what is learned:
after the template, after cutting, with the labels. Only the rows shown are tokenised.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graft.config import TaskType
from graft.data.config import DataConfig, SourceConfig
from graft.data.formats import find_format
from graft.data.preview.pieces import Piece, make_pieces
from graft.data.rendering import end_tokens
from graft.data.rows import Rows
from graft.data.sources import read_source, resolve_source
from graft.data.tasks import Example, Task, make_task
from graft.data.template import IGNORED
from graft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Fact", "Preview", "Shown", "Side", "preview"]


@dataclass(frozen=True)
class Side:
    """The text of an example, or of one side of it.

    Attributes:
        name: `source` and `target` for SEQ_2_SEQ_LM; else empty.
        pieces: Its tokens, in order.
    """

    name: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Fact:
    """A few words on an example; `good` is False for what people should look at."""

    text: str
    good: bool = True


@dataclass(frozen=True)
class Shown:
    """One example as it will be trained.

    Attributes:
        file: Where its row came from.
        row: The row in that file, counted from 1.
        part: `(2, 3)`: the second of three examples that the row became; None for one alone.
        problem: Why nothing is learned from the row; it then has no sides.
        tokens: Tokens of all sides.
        learned: How many of them are learned.
        limit: To how many tokens a side was cut; None where nothing was cut.
        end: The end token that is learned last; empty where the last token learned ends nothing,
            None where no end is due.
        label: SEQ_CLS: what is learned.
        answer: QUESTION_ANS: the marked text; empty where there is no answer in this example.
        sides: The text.
    """

    file: str
    row: int
    part: tuple[int, int] | None = None
    problem: str | None = None
    tokens: int = 0
    learned: int = 0
    limit: int | None = None
    end: str | None = None
    label: str | None = None
    answer: str | None = None
    sides: tuple[Side, ...] = ()

    @property
    def facts(self) -> list[Fact]:
        """What is to be said of it, in the order to say it."""
        if self.problem is not None:
            return [Fact(self.problem, good=False)]
        facts = [Fact(f"{self.tokens:,} tokens")]
        if self.learned:
            facts.append(Fact(f"{self.learned:,} trained ({self.learned / self.tokens:.0%})"))
        if self.label is not None:
            facts.append(Fact(f"label {self.label}"))
        if self.answer is not None:
            facts.append(Fact(f"answer {self.answer}" if self.answer else "no answer in it"))
        if self.limit is not None:
            facts.append(Fact(f"cut to {self.limit:,} tokens", good=False))
        if self.end is not None:
            text = f"ends with {self.end}" if self.end else "ends without an end token"
            facts.append(Fact(text, good=bool(self.end)))
        return facts


@dataclass(frozen=True)
class Preview:
    """The first examples of a source.

    Attributes:
        name: The source.
        rows: How many rows it has.
        format: How they are laid out.
        template: Who renders the turns, in words.
        task_type: What they are for.
        limit: Most tokens in an example.
        shown: The examples.
        more: Examples of the last row that are not among them.
    """

    name: str
    rows: int
    format: str
    template: str
    task_type: TaskType
    limit: int
    shown: tuple[Shown, ...]
    more: int


def preview(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    task_type: TaskType,
    rows: int = 3,
    row: int | None = None,
    seed: int | None = None,
) -> list[Preview]:
    """Examples of each training source, exactly as they will be trained.

    Args:
        config: The `data:` section of the run file.
        tokenizer: The base model's tokenizer.
        task_type: What the base model is for.
        rows: How many examples to show of each source.
        row: Show this row, counted from 1, and not the first ones.
        seed: Show rows drawn by this seed, and not the first ones.

    Raises:
        DataError: Files, columns or rows that cannot be used.
        ConfigError: A row that no source has, or no rows at all.
    """
    if rows < 1:
        raise ConfigError(f"rows is {rows}: expected 1 or more.")
    sources = [_Source(entry, config, tokenizer, task_type) for entry in config.train_sources]
    if row is not None:
        first, *_ = sources
        sources = [source for source in sources if 1 <= row <= len(source.rows.items)]
        if not sources:
            there = len(first.rows.items)
            raise ConfigError(
                f"There is no row {row}: {first.rows.name} has the rows 1 to {there}."
            )
    return [source.preview(rows, row, seed) for source in sources]


class _Source:
    """A source's rows, and the task that encodes them."""

    def __init__(
        self,
        entry: SourceConfig,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        task_type: TaskType,
    ) -> None:
        source = resolve_source(entry, config.dataset_dir)
        self.tokenizer = tokenizer
        self.task_type = task_type
        self.rows: Rows = read_source(source)
        self.format = find_format(self.rows, source.format, task_type)
        self.task: Task = make_task(tokenizer, config, self.format, task_type)

    def preview(self, rows: int, row: int | None, seed: int | None) -> Preview:
        there = range(len(self.rows.items))
        if row is not None:
            chosen: Sequence[int] = [row - 1]
        elif seed is not None:
            chosen = sorted(random.Random(seed).sample(there, min(rows, len(there))))
        else:
            chosen = there
        shown: list[Shown] = []
        more = 0
        for index in chosen:
            examples = self._examples(index)
            taken = examples[: rows - len(shown)]
            shown += (self._shown(index, i, len(examples), e) for i, e in enumerate(taken))
            more = len(examples) - len(taken)
            if len(shown) >= rows:
                break
        return Preview(
            name=self.rows.name,
            rows=len(there),
            format=self.format,
            template=self._template(),
            task_type=self.task_type,
            limit=self.task.limit,
            shown=tuple(shown),
            more=more,
        )

    def _examples(self, index: int) -> list[Example | None]:
        try:
            item = self.task.read(self.rows.items[index])
        except DataError as error:
            raise DataError(f"{self.rows.where(index)}: {error}") from None
        return [example for group in self.task.encode([item]) for example in group]

    def _template(self) -> str:
        if self.task.chat_template is None:
            return "texts as they stand"
        if self.tokenizer.chat_template is None:
            return "graft's plain template: the tokenizer has no chat template"
        return "the tokenizer's chat template"

    def _shown(self, index: int, part: int, parts: int, example: Example | None) -> Shown:
        file, row = self.rows.place(index)
        place: dict[str, Any] = {"file": str(file), "row": row}
        if parts > 1:
            place["part"] = (part + 1, parts)
        if example is None:
            problem = f"dropped: nothing is left to learn in its first {self.task.limit} tokens"
            return Shown(**place, problem=problem)
        limit = self.task.limit if example.truncated else None
        return Shown(**place, limit=limit, **self._content(example.columns))

    def _content(self, columns: dict[str, Any]) -> dict[str, Any]:
        """What is said of an example, by what is learned from it."""
        ids = list(columns["input_ids"])
        told: dict[str, Any] = {"tokens": len(ids)}
        if self.task_type is TaskType.SEQ_CLS:
            return told | {"label": columns["labels"], "sides": (self._side(ids),)}
        if self.task_type is TaskType.SEQ_2_SEQ_LM:
            target = list(columns["labels"])
            told |= {"tokens": len(ids) + len(target), "learned": len(target)}
            sides = (self._side(ids, name="source"), self._side(target, True, name="target"))
            return told | {"end": self._end(target), "sides": sides}
        if self.task_type is TaskType.QUESTION_ANS:
            first, last = int(columns["start_positions"]), int(columns["end_positions"])
            there = first != columns["nowhere"]
            side = self._side(ids, [there and first <= at <= last for at in range(len(ids))])
            answer = "".join(piece.text for piece in side.pieces if piece.learned).strip()
            return told | {"answer": answer, "sides": (side,)}
        if self.task_type is TaskType.TOKEN_CLS:
            labels: list[str | None] = list(columns["labels"])
            learned = [label is not None for label in labels]
            sides = (self._side(ids, learned, labels),)
            return told | {"learned": sum(learned), "sides": sides}
        # Nothing learns the label of the first token: no token comes before it.
        learned = [False, *(int(label) != IGNORED for label in columns["labels"][1:])]
        taught = [token for token, is_learned in zip(ids, learned, strict=True) if is_learned]
        end = self._end(taught) or (None if self.format == "text" else "")
        return told | {"learned": len(taught), "end": end, "sides": (self._side(ids, learned),)}

    def _side(
        self,
        ids: Sequence[int],
        learned: Sequence[bool] | bool = False,
        labels: Sequence[str | None] | None = None,
        name: str = "",
    ) -> Side:
        marks = [learned] * len(ids) if isinstance(learned, bool) else learned
        return Side(name, make_pieces(self.tokenizer, ids, marks, labels))

    def _end(self, learned: Sequence[int]) -> str:
        last = int(learned[-1])
        ends = end_tokens(self.tokenizer, self.task.chat_template)
        return next((name for name, token in ends.items() if token == last), "")
