from typing import Any

import pytest

from graft.data.formats import Question, read_question
from graft.errors import DataError

ROW = {"id": 7, "context": "In Paris, he said: Paris.", "question": "Where?"}
PLACES = [3, 19]


@pytest.mark.parametrize(
    "answers",
    [
        {"answers": {"text": ["Paris", "Paris"], "answer_start": PLACES}},
        {"answers": [{"text": "Paris", "answer_start": at} for at in PLACES]},
    ],
)
def test_several_right_answers(answers: dict[str, Any]) -> None:
    expected = Question("7", ROW["context"], "Where?", ("Paris", "Paris"), (3, 19))
    assert read_question(ROW | answers) == expected


def test_an_answer_in_other_words_is_left_out_beside_one_of_the_text() -> None:
    free = {"text": "the French capital", "answer_start": -1}
    question = read_question(ROW | {"answers": [free, {"text": "Paris", "answer_start": 3}, free]})
    assert (question.answers, question.starts) == (("Paris",), (3,))
    with pytest.raises(DataError, match="'the French capital' is nowhere in the context"):
        read_question(ROW | {"answers": [free]})


@pytest.mark.parametrize(
    "answers",
    [
        {"answers": {"text": "Paris", "answer_start": 3}},
        {"answers": "Paris", "answer_start": 3},
        {"answer": "Paris", "answer_start": 3},
        {"answer": "Paris", "answer_start": "3"},  # a cell of a csv file
    ],
)
def test_one_answer(answers: dict[str, Any]) -> None:
    del (row := dict(ROW))["id"]
    expected = Question(None, ROW["context"], "Where?", ("Paris",), (3,))
    assert read_question(row | answers) == expected


@pytest.mark.parametrize(
    "answers",
    [
        {"answers": {"text": [], "answer_start": []}},
        {"answers": [], "is_impossible": True},
        {"answers": None, "is_impossible": True},
    ],
)
def test_no_answer(answers: dict[str, Any]) -> None:
    question = read_question(ROW | answers)
    assert (question.answers, question.starts) == ((), ())


def test_characters_are_counted_not_bytes() -> None:
    row = {"context": "他在巴黎🗼。", "question": "哪里？", "answers": "🗼。", "answer_start": 4}
    assert read_question(row).starts == (4,)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"context": ""}, "context is empty: fill it in, or remove the row."),
        ({"question": None}, "question is empty: fill it in, or remove the row."),
        ({"answers": []}, "no answers: add them, or set is_impossible: true."),
        ({"answers": " ", "answer_start": 2}, "an answer is empty: fill it in, or remove the row."),
        ({"answers": "Paris"}, "answer_start: expected a whole number, not nothing."),
        (
            {"answers": "Paris", "answer_start": 3.0},
            "answer_start: expected a whole number, not 3.0.",
        ),
        (
            {"answers": "In", "answer_start": -25},
            "the answer 'In' is not at answer_start -25 but at 0: correct it.",
        ),
        (
            {"answers": {"text": ["In"], "answer_start": [0, 3]}},
            "answers: 1 texts, but 2 places (answer_start).",
        ),
        (
            {"answers": ["In"]},
            "answers: expected objects with text and answer_start, not 'In'.",
        ),
    ],
)
def test_questions_that_cannot_be_learned(more: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        read_question(ROW | {"answers": "Paris", "answer_start": 3} | _without_start(more))
    assert str(error.value) == message


def _without_start(more: dict[str, Any]) -> dict[str, Any]:
    return more if "answer_start" in more else more | {"answer_start": None}
