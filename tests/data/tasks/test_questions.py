"""Questions and texts: the windows are those of the tokenizer, the places found by brute force."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.tasks import Example, make_task
from graft.data.tasks.questions import windows

KINDS = ["wordpiece", "byte_level", "with_bos", "prepended", "metaspace"]
TEXT = (
    "The cat sat on the mat, and the dog looked at the cat. Red, green and blue. 你好，世界。 " * 3
)


def examples(
    tokenizer: Any, answer: str | None, start: int = 0, length: int = 24, text: str = TEXT
) -> list[Any]:
    config = DataConfig(train="a.jsonl", max_length=length)
    task = make_task(tokenizer, config, "question_answering", TaskType.QUESTION_ANS)
    given = {"text": [], "answer_start": []}
    if answer is not None:
        given = {"text": [answer], "answer_start": [text.index(answer, start)]}
    row = {"question": "Who?", "context": text, "answers": given, "is_impossible": answer is None}
    (found,) = task.encode([task.read(row)])
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "start"),
    [("The cat", 0), ("dog", 0), ("the dog looked", 60), ("blue", 90), ("世界", 100), ("cat.", 99)],
)
def test_the_answer_is_where_its_tokens_are(
    kind: str, answer: str, start: int, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    begin = TEXT.index(answer, start)
    end = begin + len(answer)
    found = examples(tokenizer, answer, start, length=32)
    oracle = tokenizer(
        "Who?",
        TEXT,
        truncation="only_second",
        max_length=32,
        stride=8,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert len(found) == len(oracle["input_ids"]) > 2
    answered = 0
    for index, example in enumerate(found):
        columns = example.columns
        assert columns["input_ids"].tolist() == oracle["input_ids"][index]
        sides, offsets = oracle.sequence_ids(index), oracle["offset_mapping"][index]
        inside = [at for at, side in enumerate(sides) if side == 1]
        assert (columns["context_start"], columns["context_stop"]) == (inside[0], inside[-1] + 1)
        # By brute force: the window has every character of the answer.
        characters = {char for at in inside for char in range(*offsets[at])}
        place = (columns["start_positions"], columns["end_positions"])
        if {char for char in range(begin, end) if not TEXT[char].isspace()} <= characters:
            answered += 1
            tokens = [at for at in inside if offsets[at][0] < end and offsets[at][1] > begin]
            assert place == (min(tokens), max(tokens))
        else:
            assert place == (columns["nowhere"],) * 2
    assert answered
    assert not any(example.truncated or example.answer_cut for example in found)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_count_the_tokens_of_the_whole_text(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    row, other = windows(tokenizer, [("Who?", TEXT), ("Who?", "The cat.")], 24)
    (whole,) = windows(tokenizer, [("Who?", TEXT)], 2000)[0]
    assert row[0].at == 0
    assert len(row) > 3
    for window in row:
        assert whole.offsets[window.at : window.at + len(window.offsets)] == window.offsets
        assert len(window.columns["input_ids"]) <= 24
    assert [window.last for window in row] == [False] * (len(row) - 1) + [True]
    assert row[-1].at + len(row[-1].offsets) == len(whole.offsets)
    assert len(other) == 1


def test_nowhere_is_the_token_that_begins_the_window(
    wordpiece: PreTrainedTokenizerBase, with_bos: PreTrainedTokenizerBase
) -> None:
    for tokenizer, token in ((wordpiece, "[CLS]"), (with_bos, "<s>")):
        for example in examples(tokenizer, None):
            at = example.columns["nowhere"]
            assert tokenizer.convert_ids_to_tokens(int(example.columns["input_ids"][at])) == token
            assert example.columns["start_positions"] == example.columns["end_positions"] == at


def test_blanks_around_an_answer_do_not_count(wordpiece: PreTrainedTokenizerBase) -> None:
    ((plain,), (blank,)) = (
        examples(wordpiece, answer, length=200, text="the cat sat on the mat")
        for answer in ("sat", " sat ")
    )
    for name in ("start_positions", "end_positions"):
        assert plain.columns[name] == blank.columns[name]


def test_an_answer_that_no_window_can_hold_is_left_out(wordpiece: PreTrainedTokenizerBase) -> None:
    """Its windows would learn that there is no answer."""
    assert examples(wordpiece, TEXT[:120]) == [None]
    assert examples(wordpiece, TEXT[:120], length=200) != [None]


def test_a_question_that_leaves_no_room_is_left_out(wordpiece: PreTrainedTokenizerBase) -> None:
    long = "the cat " * 9
    assert windows(wordpiece, [(long, TEXT), ("Who?", TEXT)], 24)[0] == []
    assert len(windows(wordpiece, [(long, TEXT), ("Who?", TEXT)], 24)[1]) > 1
    assert windows(wordpiece, [(long, TEXT)], 24) == [[]]
    config = DataConfig(train="a.jsonl", max_length=24)
    task = make_task(wordpiece, config, "question_answering", TaskType.QUESTION_ANS)
    row = {"question": long, "context": TEXT, "answers": {"text": ["cat"], "answer_start": [4]}}
    assert task.encode([task.read(row)]) == [[None]]


@pytest.mark.parametrize("length", range(12, 30))
def test_every_length_has_windows(wordpiece: PreTrainedTokenizerBase, length: int) -> None:
    """However short, windows go on."""
    for limit in (length, length * 3):
        (row,) = windows(wordpiece, [("a", TEXT)], limit)
        covered = {char for window in row for place in window.offsets for char in range(*place)}
        assert covered >= {at for at, char in enumerate(TEXT) if char.isalpha() and char < "z"}


def test_what_is_not_the_models_is_kept_beside(wordpiece: PreTrainedTokenizerBase) -> None:
    example = examples(wordpiece, "dog")[0]
    assert isinstance(example, Example)
    assert set(example.columns) == {
        "input_ids",
        "token_type_ids",
        "start_positions",
        "end_positions",
        "nowhere",
        "context_start",
        "context_stop",
        "context_at",
    }
