"""What cutting to the length loses: anything, and anything that is learned."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.tasks import Example, make_task
from graft.data.template import IGNORED

TURNS = [("The cat?", "It sat on the mat."), ("Why?", "So.")]
CHAT = [
    {"role": role, "content": content}
    for turn in TURNS
    for role, content in zip(("user", "assistant"), turn, strict=True)
]


def encoded(
    tokenizer: Any,
    row: dict[str, Any],
    format_name: str,
    task_type: TaskType = TaskType.CAUSAL_LM,
    **settings: Any,
) -> Example | None:
    config = DataConfig(train="a.jsonl", **settings)
    task = make_task(tokenizer, config, format_name, task_type)
    ((example,),) = task.encode([task.read(row)])
    return example


@pytest.mark.parametrize("train_on", ["response", "all"])
def test_an_answer_is_cut_where_a_learned_token_is(
    chatml: PreTrainedTokenizerBase, train_on: str
) -> None:
    """At every length: by the labels of the whole row."""
    row = {"messages": CHAT}
    whole = encoded(chatml, row, "messages", max_length=999, train_on=train_on)
    assert whole is not None
    labels = whole.columns["labels"].tolist()
    seen = set()
    for length in range(2, len(labels) + 2):
        example = encoded(chatml, row, "messages", max_length=length, train_on=train_on)
        if example is None:
            assert set(labels[1:length]) <= {IGNORED}
            continue
        assert example.columns["labels"].tolist() == labels[:length]
        assert example.truncated == (length < len(labels))
        assert example.answer_cut == any(label != IGNORED for label in labels[length:])
        seen.add((example.truncated, example.answer_cut))
    # The row ends with its last answer, so that a cut always loses some of it.
    assert seen == {(True, True), (False, False)}


def test_a_turn_that_is_not_learned_is_no_loss(chatml: PreTrainedTokenizerBase) -> None:
    silent = [*CHAT[:3], {**CHAT[3], "loss": False}]
    whole = encoded(chatml, {"messages": CHAT[:2]}, "messages", max_length=999)
    assert whole is not None
    length = len(whole.columns["labels"])
    example = encoded(chatml, {"messages": silent}, "messages", max_length=length)
    assert example is not None
    assert (example.truncated, example.answer_cut) == (False, False)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("the", "cat", (False, False)),
        ("the " * 9, "cat", (True, False)),
        ("a", "b " * 9, (True,) * 2),
    ],
)
def test_a_source_may_be_cut_and_a_target_is_missed(
    with_bos: PreTrainedTokenizerBase, source: str, target: str, expected: tuple[bool, bool]
) -> None:
    row = {"input": source, "target": target}
    example = encoded(with_bos, row, "seq2seq", TaskType.SEQ_2_SEQ_LM, max_length=8)
    assert example is not None
    assert (example.truncated, example.answer_cut) == expected


def test_blocks_of_a_text_lose_nothing(byte_level: PreTrainedTokenizerBase) -> None:
    config = DataConfig(train="a.jsonl", max_length=4)
    task = make_task(byte_level, config, "text", TaskType.CAUSAL_LM)
    (blocks, empty) = task.encode([task.read({"text": "the cat sat on the mat"}), ""])
    assert len(blocks) == 2
    assert not any(block is None or block.truncated or block.answer_cut for block in blocks)
    assert empty == [None]
    assert task.parts_rows
