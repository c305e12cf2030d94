import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.encoding import encode_source
from graft.data.prepare import PreparedData, held_out, prepare_data
from graft.data.sources import Source
from graft.data.template import find_chat_template
from graft.errors import DataError

from .conftest import CHATML

Write = Callable[..., str]
PAIRS = [{"prompt": f"the cat {n}", "completion": f" sat {n}"} for n in range(20)]


def prepare(
    tokenizer: PreTrainedTokenizerBase,
    train: Any,
    task_type: TaskType = TaskType.CAUSAL_LM,
    seed: int = 0,
    **settings: Any,
) -> PreparedData:
    return prepare_data(DataConfig(train=train, **settings), tokenizer, task_type, seed)


def learned(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != -100])


TURNS = [{"role": "user", "content": "Ask."}, {"role": "assistant", "content": "Say."}]
SAID = [{"from": "human", "value": "Ask."}, {"from": "gpt", "value": "Say."}]


@pytest.mark.parametrize(
    ("format_name", "row"),
    [
        ("alpaca", {"instruction": "Ask.", "output": "Say."}),
        ("messages", {"messages": TURNS}),
        ("sharegpt", {"conversations": SAID}),
        ("prompt_completion", {"prompt": "Ask.", "completion": "Say."}),
    ],
)
@pytest.mark.parametrize("kind", ["chatml", "with_bos"])
def test_formats_give_the_same_row(
    format_name: str, row: dict, kind: str, jsonl: Write, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    data = prepare(tokenizer, jsonl([row, row]))
    assert data.format == format_name
    assert data.train.column_names == ["input_ids", "labels"]
    if format_name == "prompt_completion" and tokenizer.chat_template is None:
        assert data.chat_template is None
        expected = tokenizer("Ask.Say.</s>")["input_ids"]
    else:
        assert data.chat_template == find_chat_template(tokenizer)
        text = tokenizer.apply_chat_template(
            TURNS, chat_template=data.chat_template, tokenize=False
        )
        expected = tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
    assert data.train["input_ids"][:] == [expected, expected]
    end = "<|im_end|>" if tokenizer.chat_template else "</s>"
    assert learned(tokenizer, data.train[0]) == f"Say.{end}"
    assert (data.rows_dropped, data.rows_truncated, data.eval) == (0, 0, None)


def test_train_on_all(chatml: PreTrainedTokenizerBase, jsonl: Write) -> None:
    path = jsonl([{"instruction": "Ask.", "output": "Say."}])
    row = prepare(chatml, path, train_on="all").train[0]
    assert row["labels"] == row["input_ids"]


def test_columns(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    path = jsonl([{"question": "a?", "answer": " b"}])
    data = prepare(byte_level, path, columns={"prompt": "question", "completion": "answer"})
    assert learned(byte_level, data.train[0]) == " b</s>"


def test_several_files_and_max_rows(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    paths = [jsonl(PAIRS[:3], "a.jsonl"), jsonl(PAIRS[3:6], "b.jsonl")]
    data = prepare(byte_level, paths, max_rows=2, eval=paths[1])
    said = [learned(byte_level, row) for row in data.train]
    assert said == [f" sat {n}</s>" for n in (0, 1, 3, 4)]  # the first ones of each
    assert data.eval is not None
    assert [learned(byte_level, row) for row in data.eval] == said[2:]


def test_rows_are_cut_and_counted(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [
        {"prompt": "the cat", "completion": " sat"},
        {"prompt": "the cat", "completion": " sat" * 20},
        {"prompt": "the cat " * 20, "completion": " sat"},
    ]
    path = jsonl(rows)
    length = len(byte_level("the cat sat</s>")["input_ids"])
    data = prepare(byte_level, path, max_length=length)
    assert (len(data.train), data.rows_truncated, data.rows_dropped) == (2, 1, 1)
    assert [len(ids) for ids in data.train["input_ids"]] == [length, length]
    assert not learned(byte_level, data.train[1]).endswith("</s>")


def test_nothing_left_to_learn_is_an_error(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    path = jsonl([{"prompt": "the cat " * 20, "completion": " sat"}])
    with pytest.raises(DataError, match=r"after cutting them to 4 tokens: raise max_length"):
        prepare(byte_level, path, max_length=4)


def test_the_models_own_limit_holds(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    byte_level = copy.deepcopy(byte_level)
    byte_level.model_max_length = 5
    data = prepare(byte_level, jsonl([{"text": "the cat sat on the mat " * 5}]), max_length=50)
    assert max(len(ids) for ids in data.train["input_ids"]) == 5


def test_eval_fraction(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    path = jsonl(PAIRS)

    def parts(seed: int) -> tuple[list[str], list[str]]:
        data = prepare(byte_level, path, seed=seed, eval_fraction=0.25)
        assert data.eval is not None
        return tuple([learned(byte_level, row) for row in part] for part in (data.train, data.eval))

    everything = [f" sat {n}</s>" for n in range(20)]
    train, heldout = parts(0)
    assert len(heldout) == 5
    assert sorted(train + heldout) == sorted(everything)
    assert train == [row for row in everything if row in train]  # the order is kept
    assert (train, heldout) == parts(0)
    assert heldout != parts(1)[1]
    same = prepare(byte_level, path, seed=1, eval_fraction=0.25, eval_seed=0).eval
    assert same is not None
    assert [learned(byte_level, row) for row in same] == heldout


def test_eval_fraction_sets_aside_at_least_one_row_and_leaves_one(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    for fraction in (0.01, 0.99):
        data = prepare(byte_level, jsonl(PAIRS[:2]), eval_fraction=fraction)
        assert data.eval is not None
        assert (len(data.train), len(data.eval)) == (1, 1)
    with pytest.raises(DataError, match="one row only"):
        prepare(byte_level, jsonl(PAIRS[:1]), eval_fraction=0.1)


def test_answers_of_one_conversation_are_not_parted(
    chatml: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    rewriting = chatml.chat_template.replace(
        "message.content", "(message.content if loop.last or message.role == 'user' else '-')"
    )
    turns = [("human", "a {}"), ("gpt", "b {}"), ("human", "c {}"), ("gpt", "d {}")]
    rows = [
        {"conversations": [{"from": who, "value": what.format(n)} for who, what in turns]}
        for n in range(4)
    ]
    chatml = copy.deepcopy(chatml)
    chatml.chat_template = rewriting
    data = prepare(chatml, jsonl(rows), eval_fraction=0.5)
    assert data.eval is not None
    for part in (data.train, data.eval):
        said = [learned(chatml, row).removesuffix("<|im_end|>") for row in part]
        numbers = [text.split()[1] for text in said]
        assert said == [f"{x} {n}" for n in numbers[::2] for x in ("b", "d")]
        assert len(said) == 4


def test_a_text_file_becomes_blocks(with_bos: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    text = "The cat sat on the mat.\n\n" * 40
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    whole = [*with_bos(text)["input_ids"], with_bos.eos_token_id]
    data = prepare(with_bos, str(path), max_length=16)
    assert data.format == "text"
    assert data.chat_template is None
    assert [token for ids in data.train["input_ids"] for token in ids] == whole
    assert data.train["labels"][:] == data.train["input_ids"][:]
    assert (data.rows_dropped, data.rows_truncated) == (0, 0)
    few = prepare(with_bos, str(path), max_length=16, max_rows=4, eval_fraction=0.25)
    assert few.eval is not None
    assert (len(few.train), len(few.eval)) == (3, 1)


def test_empty_texts_are_dropped_and_counted(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    data = prepare(byte_level, jsonl([{"text": "the cat"}, {"text": ""}, {"text": "the mat"}]))
    assert (len(data.train), data.rows_dropped) == (2, 1)


def test_classes(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [
        {"text_a": "the cat", "text_b": "the mat", "label": "no"},
        {"text_a": "the dog " * 9, "text_b": "the mat", "label": "yes"},
        {"text_a": "the dog", "label": "maybe"},
    ]
    data = prepare(wordpiece, jsonl(rows), TaskType.SEQ_CLS, max_length=8)
    assert data.label_names == ["maybe", "no", "yes"]
    assert data.train["labels"][:] == [1, 2, 0]
    for row, (text, pair) in zip(
        data.train,
        [("the cat", "the mat"), ("the dog " * 9, "the mat"), ("the dog", None)],
        strict=True,
    ):
        oracle = wordpiece(text, pair, truncation=True, max_length=8)
        assert row["input_ids"] == oracle["input_ids"]
        assert row["token_type_ids"] == oracle["token_type_ids"]
    assert data.rows_truncated == 1
    assert data.chat_template is None


def test_numbers_as_labels_keep_their_order(
    wordpiece: PreTrainedTokenizerBase, jsonl: Write, tmp_path: Path
) -> None:
    labels = [10, 9, -1, 2]
    path = jsonl([{"text": "the cat", "label": label} for label in labels])
    data = prepare(wordpiece, path, TaskType.SEQ_CLS)
    assert data.label_names == ["-1", "2", "9", "10"]
    assert data.train["labels"][:] == [3, 2, 0, 1]
    table = tmp_path / "a.csv"
    table.write_text("text,label\n" + "".join(f"the cat,{label}\n" for label in labels))
    assert prepare(wordpiece, str(table), TaskType.SEQ_CLS).label_names == data.label_names


def test_eval_has_the_labels_of_train(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [{"text": "the cat", "label": label} for label in ("good", "bad")]
    train = jsonl(rows, "train.jsonl")
    heldout = jsonl(rows[:1], "eval.jsonl")
    data = prepare(wordpiece, train, TaskType.SEQ_CLS, eval=heldout)
    assert data.eval is not None
    assert data.eval["labels"][:] == [1]
    other = jsonl([{"text": "the cat", "label": "godo"}], "other.jsonl")
    with pytest.raises(DataError, match=r"other\.jsonl has the label 'godo'.*Did you mean good"):
        prepare(wordpiece, train, TaskType.SEQ_CLS, eval=other)
    with pytest.raises(DataError, match="one label only"):
        prepare(wordpiece, heldout, TaskType.SEQ_CLS)


def test_eval_must_have_the_columns_of_train(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    train, heldout = jsonl(PAIRS, "train.jsonl"), jsonl([{"text": "the cat"}], "eval.jsonl")
    with pytest.raises(DataError, match=r"eval\.jsonl has no column 'prompt'"):
        prepare(byte_level, train, eval=heldout)


def test_targets(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    wordpiece = copy.deepcopy(wordpiece)
    wordpiece.eos_token = "[SEP]"
    path = jsonl(
        [{"prompt": "the cat", "completion": "sat on"}, {"prompt": "a", "completion": "b " * 9}]
    )
    data = prepare(wordpiece, path, TaskType.SEQ_2_SEQ_LM, max_length=6)
    assert data.train[0]["input_ids"] == wordpiece("the cat")["input_ids"]
    assert data.train[0]["labels"] == wordpiece("sat on")["input_ids"]
    assert len(data.train[1]["labels"]) == 6
    assert data.rows_truncated == 1


def test_targets_end_with_the_end_token_where_the_tokenizer_adds_none(
    with_bos: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    data = prepare(with_bos, jsonl(PAIRS[:1]), TaskType.SEQ_2_SEQ_LM)
    assert data.train[0]["labels"] == with_bos(" sat 0</s>")["input_ids"]


def test_bad_rows_are_named(chatml: PreTrainedTokenizerBase, jsonl: Write) -> None:
    path = jsonl([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": ""}])
    with pytest.raises(DataError, match=r"row 2 of .*data\.jsonl: output is empty"):
        prepare(chatml, path)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    ("weight", "times"), [(1, {1}), (2, {2}), (1.5, {1, 2}), (0.5, {0, 1}), (2.25, {2, 3})]
)
def test_weights(
    weight: float, times: set[int], use_cache: bool, byte_level: Any, jsonl: Write
) -> None:
    other = [{"prompt": "x", "completion": f" y {n}"} for n in range(5)]
    train = [jsonl(other, "b.jsonl"), {"path": jsonl(PAIRS), "weight": weight}]
    data = prepare(byte_level, train, use_cache=use_cache)
    seen = Counter(learned(byte_level, row) for row in data.train)
    assert [seen.pop(f" y {n}</s>") for n in range(5)] == [1] * 5
    counts = [seen.pop(f" sat {n}</s>", 0) for n in range(20)]
    assert not seen
    assert set(counts) == times
    assert sum(counts) == 20 * weight
    again, another = (prepare(byte_level, train, seed=seed) for seed in (0, 1))
    assert again.train["labels"][:] == data.train["labels"][:]
    assert (another.train["labels"][:] == data.train["labels"][:]) == (len(times) == 1)
    assert data.tokens == sum(map(len, data.train["input_ids"]))


def test_a_small_weight_leaves_a_row(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    data = prepare(byte_level, {"path": jsonl(PAIRS), "weight": 0.001})
    assert len(data.train) == 1


def test_no_row_is_on_both_sides(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    other = [{"prompt": "x", "completion": f" y {n}"} for n in range(20)]
    train = [{"path": jsonl(PAIRS), "weight": 2.5}, {"path": jsonl(other, "b.jsonl")}]
    for seed in range(5):
        data = prepare(byte_level, train, seed=seed, eval_fraction=0.25)
        assert data.eval is not None
        held = [learned(byte_level, row) for row in data.eval]
        assert len(held) == len(set(held)) == 10  # a quarter of all, each once
        seen = {learned(byte_level, row) for row in data.train}
        assert len(seen) == 30
        assert not seen & set(held)


def test_the_masks_of_held_out_are_the_split(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    train = [jsonl(PAIRS), jsonl([{"text": "the cat sat " * 40}], "b.jsonl")]
    config = DataConfig(train=train, eval_fraction=0.25, max_length=8)
    sources = [
        encode_source(Source(path, (Path(path),)), byte_level, config, TaskType.CAUSAL_LM)
        for path in train
    ]
    masks = held_out(sources, 0.25, 3)
    assert [len(mask) for mask in masks] == [len(encoded.rows) for encoded in sources]
    assert 0 < masks[1].sum() < len(masks[1])  # blocks of a text may be parted
    data = prepare_data(config, byte_level, TaskType.CAUSAL_LM, 3)
    assert data.eval is not None
    held = [
        encoded.rows[int(at)]["input_ids"]
        for encoded, mask in zip(sources, masks, strict=True)
        for at in np.flatnonzero(mask)
    ]
    assert data.eval["input_ids"][:] == held
    assert not any(mask.any() for mask in held_out(sources, 0.0, 3))


def test_formats_may_be_mixed(chatml: PreTrainedTokenizerBase, jsonl: Write) -> None:
    train = [
        jsonl([{"text": "the cat"}], "a.jsonl"),
        jsonl([{"messages": TURNS}], "b.jsonl"),
        jsonl([{"conversations": SAID}], "c.jsonl"),
    ]
    data = prepare(chatml, train, eval=train[2])
    assert data.format == "text, messages, sharegpt"
    assert data.chat_template == CHATML
    assert [learned(chatml, row) for row in data.train] == [
        "the cat</s>",
        "Say.<|im_end|>",
        "Say.<|im_end|>",
    ]
    assert data.eval is not None
    assert data.eval["input_ids"][:] == data.train["input_ids"][2:]
    assert set(data.sha256) == set(train)


def test_labels_of_several_sources(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    train = [
        jsonl([{"text": "the cat", "label": label} for label in ("b", "a")], "1.jsonl"),
        jsonl([{"text": "the dog", "label": label} for label in ("c", "b")], "2.jsonl"),
    ]
    data = prepare(wordpiece, train, TaskType.SEQ_CLS)
    assert data.label_names == ["a", "b", "c"]
    assert data.train["labels"][:] == [1, 0, 2, 1]


def test_tags_have_numbers_and_the_rest_has_none(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    train = jsonl([{"tokens": ["the", "cat"], "tags": tags} for tags in (["O", "B"], ["O", "C"])])
    data = prepare(byte_level, train, TaskType.TOKEN_CLS)
    assert data.label_names == ["B", "C", "O"]
    for row, tag in zip(data.train, (0, 1), strict=True):
        assert [label for label in row["labels"] if label != -100] == [2, tag]
        assert len(row["labels"]) == len(row["input_ids"])
    other = jsonl([{"tokens": ["the"], "tags": ["D"]}], "other.jsonl")
    with pytest.raises(DataError, match=r"other\.jsonl has the label 'D', which no training row"):
        prepare(byte_level, train, TaskType.TOKEN_CLS, eval=other)
