"""Rows -> questions about a text, whose answers stand in it (SQuAD's layout)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graft.data.formats.cells import as_text, kind_of, require_text, text_of
from graft.data.rows import Row
from graft.errors import DataError

__all__ = ["Question", "read_question"]


@dataclass(frozen=True)
class Question:
    """A question, the text that answers it, and where in it.

    Attributes:
        id: Its name in the file, or None.
        context: The text.
        question: The question.
        answers: The answers that count as right; none where the text does not answer it.
        starts: For each answer the character of `context` at which it begins.
    """

    id: str | None
    context: str
    question: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


def read_question(row: Row) -> Question:
    """The question in `row`. Its answers are `answers`, as `{text: [...], answer_start: [...]}` or
    as a list of `{text, answer_start}`; or one `answer`, with `answer_start` beside it. An answer
    in other words than the text's, which is marked by `answer_start: -1`, is left out where there
    is one beside it that stands there.

    Raises:
        DataError: No context or question, or an answer that is not where it is said to be.
    """
    context, question = text_of(row, "context"), text_of(row, "question")
    require_text(context, "context")
    require_text(question, "question")
    given = _answers(row)
    placed = [(text, start) for text, start in given if start != -1]
    answers = placed or given
    for text, start in answers:
        require_text(text, "an answer")
        if context[start : start + len(text)] != text or start < 0:
            raise DataError(_elsewhere(context, text, start))
    name = row.get("id")
    texts, starts = tuple(text for text, _ in answers), tuple(start for _, start in answers)
    return Question(None if name is None else str(name), context, question, texts, starts)


def _answers(row: Row) -> list[tuple[str, int]]:
    given = row.get("answers", row.get("answer"))
    if given is None or given == [] or given == "":
        if row.get("is_impossible"):
            return []
        raise DataError("no answers: add them, or set is_impossible: true.")
    if isinstance(given, dict):
        texts, starts = _listed(given.get("text")), _listed(given.get("answer_start"))
    elif isinstance(given, list):
        texts = [_of(answer, "text") for answer in given]
        starts = [_of(answer, "answer_start") for answer in given]
    else:
        texts, starts = [given], [row.get("answer_start")]
    if len(texts) != len(starts):
        raise DataError(f"answers: {len(texts)} texts, but {len(starts)} places (answer_start).")
    return [
        (as_text(text, "answers: text"), _place(start))
        for text, start in zip(texts, starts, strict=True)
    ]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _of(answer: Any, key: str) -> Any:
    if not isinstance(answer, dict):
        raise DataError(f"answers: expected objects with text and answer_start, not {answer!r}.")
    return answer.get(key)


def _place(start: Any) -> int:
    if isinstance(start, str) and start.isdecimal():  # a cell of a csv file
        return int(start)
    if not isinstance(start, int) or isinstance(start, bool):
        found = kind_of(start) if start is None or isinstance(start, dict | list) else repr(start)
        raise DataError(f"answer_start: expected a whole number, not {found}.")
    return start


def _elsewhere(context: str, text: str, start: int) -> str:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    places: list[int] = []
    at = context.find(text)
    while at >= 0 and len(places) < 3:
        places.append(at)
        at = context.find(text, at + 1)
    if not places:
        return f"the answer {shown!r} is nowhere in the context: it must stand there word for word."
    listed = " and ".join(map(str, places))
    return f"the answer {shown!r} is not at answer_start {start} but at {listed}: correct it."
