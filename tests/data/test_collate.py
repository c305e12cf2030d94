import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.collate import Collator

CAUSAL = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8, 9], "labels": [-100, 9]},
]


def test_padding_is_masked_and_never_learned(wordpiece: PreTrainedTokenizerBase) -> None:
    batch = Collator(wordpiece, TaskType.CAUSAL_LM)(CAUSAL)
    pad = wordpiece.pad_token_id
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert all(tensor.dtype is torch.int64 for tensor in batch.values())


def test_multiples(wordpiece: PreTrainedTokenizerBase) -> None:
    batch = Collator(wordpiece, TaskType.CAUSAL_LM, pad_to_multiple_of=8)(CAUSAL)
    assert {tensor.shape for tensor in batch.values()} == {(2, 8)}
    assert batch["attention_mask"].sum().item() == 5
    assert (batch["labels"] != -100).sum().item() == 3


def test_classes_have_one_label_a_row(wordpiece: PreTrainedTokenizerBase) -> None:
    rows: list[dict[str, Any]] = [
        {"input_ids": [5, 6], "token_type_ids": [0, 1], "labels": 1},
        {"input_ids": [5], "token_type_ids": [1], "labels": 0},
    ]
    batch = Collator(wordpiece, TaskType.SEQ_CLS)(rows)
    assert batch["labels"].tolist() == [1, 0]
    assert batch["token_type_ids"].tolist() == [[0, 1], [1, 0]]


def test_targets_have_their_own_length(wordpiece: PreTrainedTokenizerBase) -> None:
    rows = [{"input_ids": [5], "labels": [6, 7]}, {"input_ids": [5, 6, 7], "labels": [8]}]
    batch = Collator(wordpiece, TaskType.SEQ_2_SEQ_LM)(rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3)
    assert batch["labels"].tolist() == [[6, 7], [8, -100]]


@pytest.mark.parametrize(("eos", "expected"), [("</s>", 2), (None, 0)])
def test_without_a_pad_token(
    byte_level: PreTrainedTokenizerBase,
    eos: str | None,
    expected: int,
) -> None:
    assert byte_level.pad_token_id is None
    byte_level = copy.deepcopy(byte_level)
    byte_level.eos_token = eos
    batch = Collator(byte_level, TaskType.CAUSAL_LM)(CAUSAL)
    assert batch["input_ids"][1, 2].item() == expected
    assert batch["attention_mask"][1, 2].item() == 0
    assert batch["labels"][1, 2].item() == -100


def test_tags_have_one_label_a_token(wordpiece: PreTrainedTokenizerBase) -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 2, -100]},
        {"input_ids": [8, 9], "labels": [1, -100]},
    ]
    batch = Collator(wordpiece, TaskType.TOKEN_CLS)(rows)
    assert batch["labels"].tolist() == [[-100, 2, -100], [1, -100, -100]]


def test_answers_have_two_places_a_row(wordpiece: PreTrainedTokenizerBase) -> None:
    """What evaluation needs beside them is no argument of the model."""
    beside = {"nowhere": 0, "context_start": 1, "context_stop": 2, "context_at": 0}
    rows = [
        {"input_ids": [5, 6, 7], "start_positions": 1, "end_positions": 2, **beside},
        {"input_ids": [8, 9], "start_positions": 0, "end_positions": 0, **beside},
    ]
    batch = Collator(wordpiece, TaskType.QUESTION_ANS)(rows)
    assert set(batch) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
    assert batch["start_positions"].tolist() == [1, 0]
    assert batch["end_positions"].tolist() == [2, 0]
