"""What is shown is what is trained: ids and marks are those of `prepare`, and of transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.prepare import prepare_data
from graft.data.preview import Preview, Shown, preview, words_of
from graft.errors import ConfigError, DataError

Write = Callable[..., str]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Write a word.\n"},
    {"role": "assistant", "content": "cat 龘"},
    {"role": "user", "content": "And so on."},
    {"role": "assistant", "content": "dog\n\nmat"},
]
PAIRS = [{"prompt": f"the cat {n}", "completion": f" sat {n}"} for n in range(30)]


def look(
    tokenizer: PreTrainedTokenizerBase,
    train: Any,
    task_type: TaskType = TaskType.CAUSAL_LM,
    **settings: Any,
) -> list[Preview]:
    shown = {name: settings.pop(name) for name in ("rows", "row", "seed") if name in settings}
    return preview(DataConfig(train=train, **settings), tokenizer, task_type, **shown)


def ids_of(shown: Shown, side: int = 0) -> list[int]:
    return [token for piece in shown.sides[side].pieces for token in piece.ids]


def marked(shown: Shown) -> list[int]:
    pieces = shown.sides[0].pieces
    return [token for piece in pieces if piece.learned for token in piece.ids]


@pytest.mark.parametrize("kind", ["chatml", "with_bos", "prepended", "metaspace", "byte_level"])
@pytest.mark.parametrize("max_length", [400, 60])
@pytest.mark.parametrize("train_on", ["response", "all"])
def test_marks_are_the_labels(
    kind: str, max_length: int, train_on: str, jsonl: Write, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    path = jsonl([{"messages": CHAT}, {"messages": CHAT[1:3]}, {"messages": CHAT[1:]}])
    settings = {"max_length": max_length, "train_on": train_on}
    (found,) = look(tokenizer, path, **settings)
    config = DataConfig(train=path, **settings)
    data = prepare_data(config, tokenizer, TaskType.CAUSAL_LM, seed=0)
    assert [shown.row for shown in found.shown if not shown.problem] == [
        row for row, shown in enumerate(found.shown, 1) if not shown.problem
    ]
    kept = [shown for shown in found.shown if not shown.problem]
    assert len(kept) == len(data.train)
    for shown, row in zip(kept, data.train, strict=True):
        ids, labels = row["input_ids"], row["labels"]
        assert ids_of(shown) == ids
        # A loss of next tokens, by hand: the place before predicts, so the first is never learned.
        learned = [ids[at] for at in range(1, len(ids)) if labels[at] != -100]
        assert marked(shown) == learned
        assert (shown.tokens, shown.learned) == (len(ids), len(learned))
    assert sum(shown.limit is not None for shown in kept) == data.rows_truncated
    assert sum(shown.problem is not None for shown in found.shown) == data.rows_dropped


def test_a_chat_by_hand(chatml: PreTrainedTokenizerBase, jsonl: Write) -> None:
    (found,) = look(chatml, jsonl([{"messages": CHAT}]))
    (shown,) = found.shown
    text = "".join(piece.text for piece in shown.sides[0].pieces)
    assert text == chatml.apply_chat_template(CHAT, tokenize=False).removesuffix("\n")
    assert chatml.decode(marked(shown)) == "cat 龘<|im_end|>dog\n\nmat<|im_end|>"
    assert shown.end == "<|im_end|>"
    assert [fact.text for fact in shown.facts] == [
        f"{shown.tokens} tokens",
        f"{shown.learned} trained ({shown.learned / shown.tokens:.0%})",
        "ends with <|im_end|>",
    ]
    assert found.template == "the tokenizer's chat template"
    assert (found.format, found.rows, found.more) == ("messages", 1, 0)


def test_cut_and_dropped(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [
        {"prompt": "the cat", "completion": " sat" * 20},
        {"prompt": "the cat " * 20, "completion": " sat"},
    ]
    length = len(byte_level("the cat sat")["input_ids"]) + 1
    (found,) = look(byte_level, jsonl(rows), max_length=length)
    cut, dropped = found.shown
    assert (cut.tokens, cut.limit, cut.end) == (length, length, "")
    assert [fact.text for fact in cut.facts if not fact.good] == [
        f"cut to {length} tokens",
        "ends without an end token",
    ]
    assert dropped.problem == f"dropped: nothing is left to learn in its first {length} tokens"
    assert dropped.sides == ()


def test_which_rows(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    path = jsonl(PAIRS)

    def rows(**settings: Any) -> list[int]:
        return [shown.row for found in look(byte_level, path, **settings) for shown in found.shown]

    assert rows() == [1, 2, 3]
    assert rows(rows=5) == [1, 2, 3, 4, 5]
    assert rows(row=7) == [7]
    assert rows(rows=99) == list(range(1, 31))
    drawn = rows(rows=6, seed=3)
    assert drawn == rows(rows=6, seed=3) == sorted(set(drawn))
    assert len(drawn) == 6
    assert drawn != rows(rows=6, seed=4)
    with pytest.raises(ConfigError, match=r"no row 31: .*data.jsonl has the rows 1 to 30\."):
        rows(row=31)


def test_each_source(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    paths = [jsonl(PAIRS[:2], "a.jsonl"), jsonl(PAIRS[2:12], "b.jsonl")]
    assert [
        (Path(shown.file).name, shown.row)
        for found in look(byte_level, paths, rows=3)
        for shown in found.shown
    ] == [("a.jsonl", 1), ("a.jsonl", 2), ("b.jsonl", 1), ("b.jsonl", 2), ("b.jsonl", 3)]
    (found,) = look(byte_level, paths, row=4)  # the only source that has one
    assert Path(found.name).name == "b.jsonl"


def test_blocks_of_a_text(with_bos: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("The cat sat on the mat.\n" * 30, encoding="utf-8")
    whole = [*with_bos(path.read_text())["input_ids"], with_bos.eos_token_id]
    blocks = -(-len(whole) // 16)
    (found,) = look(with_bos, str(path), max_length=16, rows=2)
    assert [shown.part for shown in found.shown] == [(1, blocks), (2, blocks)]
    assert [ids_of(shown) for shown in found.shown] == [whole[:16], whole[16:32]]
    assert found.more == blocks - 2
    assert all(fact.good for shown in found.shown for fact in shown.facts)
    assert found.template == "texts as they stand"


def test_a_row_that_cannot_be_used_is_named(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    path = jsonl([*PAIRS[:2], {"prompt": "the cat", "completion": ""}])
    assert len(look(byte_level, path, rows=2)[0].shown) == 2  # it is not asked for
    with pytest.raises(DataError, match=r"row 3 of .*data.jsonl: completion is empty"):
        look(byte_level, path)


def test_classes(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [{"text": "the cat", "text_pair": "the mat", "label": "yes"}]
    (found,) = look(wordpiece, jsonl(rows), TaskType.SEQ_CLS)
    (shown,) = found.shown
    assert ids_of(shown) == wordpiece("the cat", "the mat")["input_ids"]
    assert marked(shown) == []
    assert [fact.text for fact in shown.facts] == [f"{shown.tokens} tokens", "label yes"]


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level"])
def test_tags(kind: str, jsonl: Write, request: pytest.FixtureRequest) -> None:
    words, tags = ["The", "cat", "sat", "龘", "mat"], ["O", "B-pet", "O", "B-x", "I-x"]
    (found,) = look(
        request.getfixturevalue(kind),
        jsonl([{"tokens": words, "ner_tags": tags}]),
        TaskType.TOKEN_CLS,
    )
    (shown,) = found.shown
    said = [
        ("".join(piece.text for piece in word).strip(), word[0].label)
        for word in words_of(shown.sides[0].pieces)
        if not word[0].special or word[0].label
    ]
    unknown = {"龘": "[UNK]"} if kind == "wordpiece" else {}
    assert said == [(unknown.get(w, w), tag) for w, tag in zip(words, tags, strict=True)]
    assert shown.learned == 5


def test_answers(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    context = "the dog looked at the cat and the cat sat on the mat"
    rows = [
        {"context": context, "question": "and the dog ?", "answers": {"text": ["the cat sat"],
         "answer_start": [context.index("the cat sat")]}},
        {"context": context, "question": "and so on ?", "answers": [], "is_impossible": True},
    ]  # fmt: skip
    (found,) = look(wordpiece, jsonl(rows), TaskType.QUESTION_ANS)
    answered, nowhere = found.shown
    assert wordpiece.decode(marked(answered)) == answered.answer == "the cat sat"
    pair = wordpiece("and the dog ?", context)["input_ids"]
    assert ids_of(answered) == pair
    # The second "the cat" of the row: marked by its place, not by its words.
    at = [piece.learned for piece in answered.sides[0].pieces].index(True)
    assert wordpiece.decode(pair[:at]).endswith("cat and")
    assert (marked(nowhere), nowhere.answer) == ([], "")
    assert "no answer in it" in [fact.text for fact in nowhere.facts]


def test_source_and_target(with_bos: PreTrainedTokenizerBase, jsonl: Write) -> None:
    path = jsonl([{"input": "the cat", "target": "the mat"}])
    (found,) = look(with_bos, path, TaskType.SEQ_2_SEQ_LM)
    (shown,) = found.shown
    data = prepare_data(DataConfig(train=path), with_bos, TaskType.SEQ_2_SEQ_LM, seed=0)
    assert [side.name for side in shown.sides] == ["source", "target"]
    assert ids_of(shown, 0) == data.train[0]["input_ids"]
    assert ids_of(shown, 1) == data.train[0]["labels"]
    assert all(piece.learned for piece in shown.sides[1].pieces)
    assert not any(piece.learned for piece in shown.sides[0].pieces)
    assert shown.end == "</s>"
