import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.prepare import PreparedData, prepare_data
from graft.data.template import find_chat_template
from graft.errors import DataError

Write = Callable[..., str]
PAIRS = [{"prompt": f"the cat {n}", "completion": f" sat {n}"} for n in range(20)]


def prepare(
    tokenizer: PreTrainedTokenizerBase,
    train: str | list[str],
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
