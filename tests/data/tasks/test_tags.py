"""Words and their tags: the tokenizer's own words are the oracle, or a walk over the text."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.tasks import make_task
from graft.data.tasks.tags import encode_words
from graft.errors import DataError

from ..test_template import ALL

WORDS = ["The", "cat", "looked", "at", "colours", "你好", "New York", "."]
TAGS = ["O", "B-who", "O", "O", "B-what", "B-word", "B-where", "O"]


def labels_of(tokenizer: Any, words: list[str], tags: list[str], length: int = 99) -> Any:
    config = DataConfig(train="a.jsonl", max_length=length)
    task = make_task(tokenizer, config, "token_classification", TaskType.TOKEN_CLS)
    read = task.read({"tokens": words, "tags": tags})
    ((example,),) = task.encode([read])
    return example


def test_equals_the_tokenizers_own_words(wordpiece: PreTrainedTokenizerBase) -> None:
    oracle = wordpiece(WORDS, is_split_into_words=True)
    example = labels_of(wordpiece, WORDS, TAGS)
    assert example.columns["input_ids"].tolist() == oracle["input_ids"]
    assert example.columns["token_type_ids"].tolist() == oracle["token_type_ids"]
    expected: list[str | None] = []
    seen: set[int] = set()
    for word in oracle.word_ids():
        expected.append(TAGS[word] if word is not None and word not in seen else None)
        seen.add(word if word is not None else -1)
    assert example.columns["labels"] == expected
    assert len(expected) > len(WORDS) + 2  # some words are several tokens
    assert (example.truncated, example.answer_cut) == (False, False)


@pytest.mark.parametrize("kind", [*ALL, "wordpiece"])
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25
)
@given(words=st.lists(st.text("abT 好é.", min_size=1, max_size=6).filter(str.strip), min_size=1))
def test_each_word_has_its_tag_at_its_first_token(
    kind: str, words: list[str], request: pytest.FixtureRequest
) -> None:
    """The text up to a word's first token is the text in front of the word."""
    tokenizer = request.getfixturevalue(kind)
    words = [word.strip() for word in words]
    (coded,) = encode_words(tokenizer, [words], 999)
    whole = tokenizer(" ".join(words), return_offsets_mapping=True)
    assert coded.columns["input_ids"] == whole["input_ids"]
    at = 0
    for word, token in zip(words, coded.first, strict=True):
        assert token is not None
        start, stop = whole["offset_mapping"][token]
        assert start in (at, at - 1)  # with the space in front
        assert stop > at
        before = whole["offset_mapping"][token - 1] if token else (0, 0)
        assert before[1] <= at
        at += len(word) + 1


def test_a_byte_level_tokenizer_sees_the_words_as_text(
    byte_level: PreTrainedTokenizerBase,
) -> None:
    """Without add_prefix_space words by themselves would be other tokens: those of no text."""
    example = labels_of(byte_level, WORDS, TAGS)
    text = " ".join(WORDS)
    assert example.columns["input_ids"].tolist() == byte_level(text)["input_ids"]
    assert byte_level(WORDS, is_split_into_words=True)["input_ids"] != byte_level(text)["input_ids"]
    assert [tag for tag in example.columns["labels"] if tag is not None] == TAGS


@pytest.mark.parametrize("length", range(4, 11))
def test_truncation_keeps_the_special_tokens(
    wordpiece: PreTrainedTokenizerBase, length: int
) -> None:
    example = labels_of(wordpiece, WORDS, TAGS, length)
    oracle = wordpiece(WORDS, is_split_into_words=True, truncation=True, max_length=length)
    assert example.columns["input_ids"].tolist() == oracle["input_ids"]
    assert len(example.columns["labels"]) == length
    there = {word for word in oracle.word_ids() if word is not None}
    assert [tag for tag in example.columns["labels"] if tag] == TAGS[: len(there)]
    assert example.truncated
    assert example.answer_cut == (len(there) < len(WORDS))


def test_a_word_without_tokens_has_no_tag(wordpiece: PreTrainedTokenizerBase) -> None:
    (coded,) = encode_words(wordpiece, [["the", "", "cat"]], 99)
    assert [token is None for token in coded.first] == [False, True, False]
    assert labels_of(wordpiece, [" "], ["O"]) is None


def test_one_token_for_two_words_is_refused(metaspace: Any) -> None:
    """A tokenizer that joins words cannot tag them."""
    tokenizer = copy.deepcopy(metaspace)
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence([])
    core.add_tokens(["cat sat"])
    with pytest.raises(DataError, match="one token of the words 'cat' and 'sat'"):
        labels_of(tokenizer, ["the", "cat", "sat"], ["O", "O", "O"])


@pytest.mark.parametrize("task_type", [TaskType.TOKEN_CLS, TaskType.QUESTION_ANS])
def test_a_slow_tokenizer_is_refused(task_type: TaskType) -> None:
    config = DataConfig(train="a.jsonl")
    with pytest.raises(DataError, match=r"ByT5Tokenizer is a slow tokenizer.*tokenizer\.json"):
        make_task(ByT5Tokenizer(), config, "auto", task_type)
