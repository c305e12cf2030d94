"""QUESTION_ANS: learn where in a text the answer to a question stands.

A long text is read in windows that overlap. A window without the answer learns to point to the
token that begins it ([CLS]); the windows of a row stay together, in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graft.data.config import DataConfig
from graft.data.formats import Question, read_question
from graft.data.rows import Row
from graft.data.tasks.task import Example, Task, array, inputs_of, require_offsets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Answers", "Window", "windows"]


@dataclass(frozen=True)
class Window:
    """A question and a part of the text that may answer it.

    Attributes:
        columns: The tokenizer's columns.
        nowhere: The place that means: the answer is not here.
        start: The place of the first token of the text; its tokens stand together.
        at: The number of that token in the whole text.
        offsets: Where in the text each of its tokens stands.
        last: Whether the text ends here.
    """

    columns: dict[str, list[int]]
    nowhere: int
    start: int
    at: int
    offsets: list[tuple[int, int]]
    last: bool

    @property
    def stop(self) -> int:
        """The place after the last token of the text."""
        return self.start + len(self.offsets)


class Answers(Task):
    """Learn where in a text the answer to a question stands."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: DataConfig, format_name: str
    ) -> None:
        super().__init__(tokenizer, config, format_name)
        require_offsets(tokenizer, "Answers in a text")

    def read(self, row: Row) -> Question:
        return read_question(row)

    def encode(self, items: list[Question]) -> list[list[Example | None]]:
        pairs = [(item.question, item.context) for item in items]
        rows = windows(self.tokenizer, pairs, self.limit)
        return [_examples(row, item) for row, item in zip(rows, items, strict=True)]


def windows(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], limit: int
) -> list[list[Window]]:
    """The windows of each question and text; neighbours share a quarter of `limit` tokens.

    A row has none where the question leaves less than half of `limit` to the text, or where there
    is no token in the text.
    """
    questions = inputs_of(tokenizer, [question for question, _ in pairs], add_special_tokens=False)
    most = limit - limit // 2 - tokenizer.num_special_tokens_to_add(pair=True)
    usable = [at for at, ids in enumerate(questions["input_ids"]) if len(ids) <= most]
    out: list[list[Window]] = [[] for _ in pairs]
    if not usable:
        return out
    shared = limit // 4
    coded = tokenizer(
        [pairs[at][0] for at in usable],
        [pairs[at][1] for at in usable],
        truncation="only_second",
        max_length=limit,
        stride=shared,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    columns: dict[str, Any] = dict(coded)
    offsets = columns.pop("offset_mapping")
    owners = columns.pop("overflow_to_sample_mapping")
    for index, owner in enumerate(owners):
        sides = coded.sequence_ids(index)
        if 1 not in sides:
            continue
        row = out[usable[owner]]
        start = sides.index(1)
        row.append(
            Window(
                columns={name: column[index] for name, column in columns.items()},
                nowhere=_nowhere(tokenizer, columns["input_ids"][index]),
                start=start,
                at=row[-1].at + len(row[-1].offsets) - shared if row else 0,
                offsets=[offsets[index][place] for place, side in enumerate(sides) if side == 1],
                last=owners[index + 1 : index + 2] != [owner],
            )
        )
    return out


def _nowhere(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token in ids:
            return ids.index(token)
    return 0


def _examples(row: list[Window], question: Question) -> list[Example | None]:
    found = [_place(window, question) for window in row]
    if question.answers and not any(found):
        return [None]  # the windows would learn that there is no answer
    return [
        Example(
            {
                **{name: array(values) for name, values in window.columns.items()},
                "start_positions": place[0] if place else window.nowhere,
                "end_positions": place[1] if place else window.nowhere,
                "nowhere": window.nowhere,
                "context_start": window.start,
                "context_stop": window.stop,
                "context_at": window.at,
            }
        )
        for window, place in zip(row, found, strict=True)
    ] or [None]


def _place(window: Window, question: Question) -> tuple[int, int] | None:
    """The first and the last token of the answer; None where it is not whole in the window."""
    if not question.answers:
        return None
    answer, start = question.answers[0], question.starts[0]
    start += len(answer) - len(answer.lstrip())
    stop = start + len(answer.strip())
    offsets = window.offsets
    cut_before = window.at > 0 and offsets[0][0] > start
    cut_behind = not window.last and offsets[-1][1] < stop
    tokens = [at for at, (first, end) in enumerate(offsets) if first < stop and end > start]
    if cut_before or cut_behind or not tokens:
        return None
    return window.start + tokens[0], window.start + tokens[-1]
