import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from graft.data.preview.pieces import make_pieces, special_ids, words_of

KINDS = ["byte_level", "with_bos", "prepended", "metaspace", "wordpiece"]
TEXTS = [
    "The cat sat on the mat.",
    "你好，世界。龘龍 请写一首诗。",
    " two  spaces\n\nand\ttabs \n",
    "🙂👩‍👩‍👧 e\u0301 ñ",
    "",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_no_token_is_lost_and_no_text(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(kind)
    ids = [*tokenizer(text)["input_ids"], *tokenizer("the cat")["input_ids"]]
    pieces = make_pieces(tokenizer, ids, [False] * len(ids))
    assert [token for piece in pieces for token in piece.ids] == ids
    names = [name for piece in pieces for name in piece.names]
    assert names == tokenizer.convert_ids_to_tokens(ids)
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    shown = "".join(piece.text for piece in pieces)
    if kind == "wordpiece":  # which puts spaces between tokens
        whole, shown = whole.replace(" ", ""), shown.replace(" ", "")
    assert shown == whole


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_a_character_of_several_tokens_is_whole(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    ids = tokenizer("a龘🙂b", add_special_tokens=False)["input_ids"]
    pieces = make_pieces(tokenizer, ids, [True] * len(ids))
    shared = {piece.text.strip(): len(piece.ids) for piece in pieces if len(piece.ids) > 1}
    assert shared == {"龘": 3, "🙂": 4}  # of 3 and 4 bytes, which no text taught to join


def test_a_character_that_was_cut_is_shown_as_broken(byte_level: PreTrainedTokenizerBase) -> None:
    ids = byte_level("a龘b")["input_ids"]
    assert len(ids) == 5
    pieces = make_pieces(byte_level, ids[:3], [True] * 3)
    assert [piece.text for piece in pieces] == ["a", "\ufffd"]
    assert pieces[1].ids == tuple(ids[1:3])
    # The rest belongs to nothing, and does not swallow what comes after.
    assert [piece.text for piece in make_pieces(byte_level, ids[3:], [True] * 2)][-1][-1] == "b"


def test_marks_do_not_run_together(byte_level: PreTrainedTokenizerBase) -> None:
    ids = byte_level("龘")["input_ids"]
    pieces = make_pieces(byte_level, ids, [False, True, True])
    assert [(piece.ids, piece.learned) for piece in pieces] == [
        ((ids[0],), False),
        (tuple(ids[1:]), True),
    ]


@settings(deadline=None, max_examples=50)
@given(text=st.text(max_size=40), seed=st.integers(0, 9))
def test_any_text_and_any_marks(byte_level: PreTrainedTokenizerBase, text: str, seed: int) -> None:
    ids = byte_level(text)["input_ids"]
    marks = random.Random(seed).choices([False, True], k=len(ids))
    pieces = make_pieces(byte_level, ids, marks)
    flat = [(token, piece.learned) for piece in pieces for token in piece.ids]
    assert flat == list(zip(ids, marks, strict=True))
    assert all(piece.text for piece in pieces)
    plain = make_pieces(byte_level, ids, [False] * len(ids))
    assert "".join(piece.text for piece in plain) == byte_level.decode(ids)


def test_special_tokens(chatml: PreTrainedTokenizerBase) -> None:
    ids = chatml("<|im_start|>user\nhi<|im_end|>")["input_ids"]
    pieces = make_pieces(chatml, ids, [False] * len(ids))
    assert [piece.text for piece in pieces if piece.special] == ["<|im_start|>", "<|im_end|>"]
    names = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    assert special_ids(chatml) == set(chatml.convert_tokens_to_ids(names))


def test_words(wordpiece: PreTrainedTokenizerBase) -> None:
    words = ["The", "cat", "sat,", "你好"]
    coded = wordpiece(" ".join(words), return_offsets_mapping=True)
    ids, labels = coded["input_ids"], []
    owners = [
        None if a == b else " ".join(words)[:a].count(" ") for a, b in coded["offset_mapping"]
    ]
    for before, owner in zip([None, *owners], owners, strict=False):
        labels.append(None if owner is None or owner == before else f"L{owner}")
    pieces = make_pieces(wordpiece, ids, [label is not None for label in labels], labels)
    found = words_of(pieces)
    assert [piece for word in found for piece in word] == list(pieces)
    assert [word[0].label for word in found] == [None, "L0", "L1", "L2", "L3", None]
    assert [sum(len(piece.ids) for piece in word) for word in found[1:-1]] == [
        owners.count(owner) for owner in range(4)
    ]
