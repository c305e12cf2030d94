"""Files that people have, broken as they break them, and all that graft says of each."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.config import DataConfig, SourceConfig
from graft.data.formats import (
    find_format,
    read_batches,
    read_label,
    read_messages,
    read_pair,
    read_question,
    read_tags,
    read_text,
)
from graft.data.prepare import prepare_data
from graft.data.rows import Row
from graft.data.sources import read_source, resolve_source
from graft.errors import DataError

CHAT, CLASSES, TAGS = TaskType.CAUSAL_LM, TaskType.SEQ_CLS, TaskType.TOKEN_CLS
PAIRS, QUESTIONS = TaskType.SEQ_2_SEQ_LM, TaskType.QUESTION_ANS


def use(entry: SourceConfig, task_type: TaskType, dataset_dir: Path | None = None) -> list[Any]:
    """Everything that a run reads of `entry` before it makes tokens."""
    source = resolve_source(entry, dataset_dir and str(dataset_dir))
    rows = read_source(source)
    layout = find_format(rows, source.format, task_type)
    readers: dict[TaskType, Callable[[Row], Any]] = {
        CHAT: read_text if layout == "text" else lambda row: read_messages(row, layout),
        PAIRS: lambda row: read_pair(row, layout),
        CLASSES: read_label,
        TAGS: read_tags,
        QUESTIONS: read_question,
    }
    batches = read_batches(rows, readers[task_type], 1000)
    return [item for _, batch in batches for item in batch]


@dataclass
class Broken:
    """A file, and what is said of it; `{path}` stands for the file, `{folder}` for its folder."""

    name: str
    content: bytes | str | list[Any]
    message: str
    task_type: TaskType = CHAT
    entry: dict[str, Any] = field(default_factory=dict)


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


ALPACA = {"instruction": "Add.", "output": "3"}
PARIS = {"context": "He is in Paris, in Paris.", "question": "Where?"}

BROKEN = {
    "empty": Broken("a.jsonl", "", "{path} is empty: expected at least one row."),
    "blank lines only": Broken(
        "a.jsonl", "\n  \n\n", "{path} is empty: expected at least one row."
    ),
    "header only": Broken(
        "a.csv", "instruction,output\n", "{path} is empty: expected at least one row."
    ),
    "not UTF-8": Broken(
        "a.csv",
        "text\nok\n你好\n".encode("gbk"),
        "{path}, line 3: not UTF-8 text; save the file as UTF-8.",
    ),
    "UTF-16": Broken(
        "a.jsonl", json.dumps(ALPACA).encode("utf-16"), "{path} is UTF-16 text: save it as UTF-8."
    ),
    "UTF-16 without its mark": Broken(
        "a.jsonl",
        json.dumps(ALPACA).encode("utf-16-le"),
        "{path} is not UTF-8 text (it holds zero bytes): save it as UTF-8.",
    ),
    "a line cut off": Broken(
        "a.jsonl",
        '{"text": "a"}\n{"text": "b',
        "{path}, line 2: not JSON: Unterminated string. The file may be cut off at its "
        "end: get it again.",
    ),
    "a line that is not JSON": Broken(
        "a.jsonl",
        '{"text": "a"}\n{"text": b}\n{"text": "c"}\n',
        "{path}, line 2: not JSON: Expecting value. Expected one object a line, or one "
        "list of objects.",
    ),
    "a list cut off": Broken(
        "a.json",
        '[{"text": "a"},\n {"text": "b"},\n',
        "{path}, line 3: not JSON: Expecting value. The file may be cut off at its "
        "end: get it again.",
    ),
    "Python's quotes": Broken(
        "a.jsonl",
        "{'text': 'a'}\n",
        "{path}, line 1: not JSON: Expecting property name enclosed in double quotes. "
        "Expected one object a line, or one list of objects.",
    ),
    "a list of texts": Broken(
        "a.json", '["a", "b"]', "{path}, row 1: expected an object, not text."
    ),
    "a row that is no object": Broken(
        "a.jsonl", '{"text": "a"}\n3\n', "{path}, line 2: expected an object, not a number."
    ),
    "one object over lines": Broken(
        "a.json",
        '{\n "version": 1,\n "rows": []\n}',
        "{path} is one object over several lines (keys: version, rows). Expected one "
        "object a line, or one list of objects.",
    ),
    "half of a character": Broken(
        "a.jsonl",
        '{"text": "a\\ud83d"}\n',
        "{path}, line 1: \\ud83d is half of a character: write the other half too, or remove it.",
    ),
    "a missing cell": Broken(
        "a.csv",
        "text,label\na,1\nb\n",
        "{path}, line 3: 1 cell, but 2 columns are named in the first line; fill in what lacks.",
        CLASSES,
    ),
    "a comma too many": Broken(
        "a.csv",
        "text,label\nyes, no,1\n",
        "{path}, line 2: 3 cells, but 2 columns are named in the first line; quote "
        "text that holds commas.",
        CLASSES,
    ),
    "an empty cell": Broken(
        "a.csv",
        "text,label\na,1\nb,\n",
        "row 2 of {path}: no label: add it, or remove the row.",
        CLASSES,
    ),
    "a name twice": Broken(
        "a.csv",
        "text,label,text\na,1,b\n",
        "{path}: two columns have the same name: text; rename one.",
        CLASSES,
    ),
    "an open quote": Broken(
        "a.csv",
        'text,label\na,1\n"b,2\nc,3\n',
        "{path}, line 3: not CSV: a quote that opens here is never closed.",
        CLASSES,
    ),
    "semicolons": Broken(
        "a.csv",
        "text;label\na;1\n",
        "{path} separates its cells by semicolons: save it with commas instead.",
        CLASSES,
    ),
    "no Parquet": Broken(
        "a.parquet",
        "PAR0",
        "{path} is not Parquet, or damaged: Parquet file size is 4 bytes, smaller than the minimum "
        "file footer (8 bytes). Get it again.",
    ),
    "Parquet of another name": Broken(
        "a.json", b"PAR1\x15\x04", "{path} is Parquet: name it so (.parquet)."
    ),
    "an LFS pointer": Broken(
        "a.parquet",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "{path} is a Git-LFS pointer, not the data: run `git lfs pull` first.",
    ),
    "an unknown kind": Broken(
        "a.xlsx",
        b"PK\x03\x04",
        "{path} is of an unknown kind '.xlsx': expected one of json, jsonl, csv, parquet, txt.",
    ),
    "compressed": Broken(
        "a.jsonl.gz",
        b"\x1f\x8b\x08",
        "{path} is compressed (.gz): unpack it first: gunzip -k {path}",
    ),
    "compressed under another name": Broken(
        "a.jsonl", b"\x1f\x8b\x08", "{path} is compressed with gzip: unpack it first."
    ),
    "other columns": Broken(
        "a.jsonl",
        [{"question": "a", "answer": "b"}],
        "{path} has the columns question, answer; CAUSAL_LM needs one of: messages "
        "(messages); conversations (sharegpt); instruction + output (alpaca); prompt + "
        "completion (prompt_completion); input + target (seq2seq); text (text). If "
        "that is what they are, set columns: {{prompt: question, completion: answer}}.",
    ),
    "columns of nothing": Broken(
        "a.jsonl",
        [{"foo": "a", "bar": "b"}],
        "{path} has the columns foo, bar; CAUSAL_LM needs one of: messages (messages); "
        "conversations (sharegpt); instruction + output (alpaca); prompt + completion "
        "(prompt_completion); input + target (seq2seq); text (text).",
    ),
    "columns of another task": Broken(
        "a.jsonl",
        [{"text": "a", "label": "b"}],
        "{path} has the columns text, label; TOKEN_CLS needs one of: tokens + tags "
        "(token_classification). They are those of classification, which is for "
        "SEQ_CLS.",
        TAGS,
    ),
    "a column misspelt": Broken(
        "a.jsonl",
        [{"instruction": "a", "outptu": "b"}],
        "{path} has no column 'output' (format alpaca). Did you mean outptu?",
        entry={"format": "alpaca"},
    ),
    "an unknown role": Broken(
        "a.jsonl",
        [turns(("user", "a"), ("asistant", "b"))],
        "row 1 of {path}: turn 2: role 'asistant' is not a role. Did you mean assistant?",
    ),
    "no assistant turn": Broken(
        "a.jsonl",
        [turns(("user", "a"), ("assistant", "b")), turns(("user", "a"))],
        "row 2 of {path}: no assistant turn: add the response, or remove the row.",
    ),
    "an empty answer": Broken(
        "a.jsonl",
        [turns(("user", "a"), ("assistant", " "))],
        "row 1 of {path}: an assistant turn is empty: fill it in, or remove the row.",
    ),
    "pictures": Broken(
        "a.jsonl",
        [turns(("user", [{"type": "image", "image": "x.png"}]), ("assistant", "b"))],
        "row 1 of {path}: turn 1: content: a part is of type 'image': only text is learned.",
    ),
    "arguments that are no JSON": Broken(
        "a.jsonl",
        [
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "function_call", "value": "{name: b}"},
                ]
            }
        ],
        "row 1 of {path}: turn 2: value: not JSON: Expecting property name enclosed in "
        "double quotes (character 2).",
    ),
    "history that is no pairs": Broken(
        "a.jsonl",
        [{**ALPACA, "history": [["a", "b"], ["c"]]}, ALPACA, {**ALPACA, "history": "x"}],
        "row 1 of {path}: history, entry 2: expected a [user, assistant] pair. 1 more "
        "cannot be used: row 3.",
    ),
    "an object in a text": Broken(
        "a.jsonl", [{"text": {"en": "a"}}], "row 1 of {path}: text: expected text, not an object."
    ),
    "no target": Broken(
        "a.jsonl",
        [{"input": "a", "target": ""}],
        "row 1 of {path}: target is empty: fill it in, or remove the row.",
        PAIRS,
    ),
    "a label NaN": Broken(
        "a.json",
        '[{"text": "a", "label": 1}, {"text": "b", "label": NaN}]',
        "row 2 of {path}: the label is NaN (a missing value): fill it in, or remove the row.",
        CLASSES,
    ),
    "a label that is a fraction": Broken(
        "a.jsonl",
        [{"text": "a", "label": 0.5}],
        "row 1 of {path}: the label is 0.5: expected text or a whole number.",
        CLASSES,
    ),
    "tags of another length": Broken(
        "a.jsonl",
        [{"tokens": ["a", "b", "c"], "ner_tags": ["O", "O"]}],
        "row 1 of {path}: 2 tags for 3 tokens: each token needs one.",
        TAGS,
    ),
    "tokens that are one text": Broken(
        "a.jsonl",
        [{"tokens": "a b", "tags": "O O"}],
        "row 1 of {path}: tokens: expected a list, not text.",
        TAGS,
    ),
    "an answer elsewhere": Broken(
        "a.jsonl",
        [{**PARIS, "answers": {"text": ["Paris"], "answer_start": [8]}}],
        "row 1 of {path}: the answer 'Paris' is not at answer_start 8 but at 9 and 19: correct it.",
        QUESTIONS,
    ),
    "an answer nowhere": Broken(
        "a.jsonl",
        [{**PARIS, "answer": "London", "answer_start": 9}],
        "row 1 of {path}: the answer 'London' is nowhere in the context: it must stand "
        "there word for word.",
        QUESTIONS,
    ),
    "no answer": Broken(
        "a.jsonl",
        [PARIS | {"answers": None}],
        "row 1 of {path}: no answers: add them, or set is_impossible: true.",
        QUESTIONS,
    ),
    "SQuAD without questions": Broken(
        "a.json",
        json.dumps({"data": [{"paragraphs": [{"context": "a"}]}]}),
        "{path}, line 1, article 1: expected qas, a list of objects (SQuAD's layout).",
        QUESTIONS,
    ),
    "a split of one file": Broken(
        "a.jsonl",
        [ALPACA],
        "split: {path} is one file, and has no splits.",
        entry={"split": "train"},
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_says_where_what_and_what_to_do(broken: Broken, tmp_path: Path) -> None:
    path = tmp_path / broken.name
    content = broken.content
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        use(SourceConfig(path=str(path), **broken.entry), broken.task_type)
    assert str(error.value) == broken.message.format(path=path, folder=tmp_path)


def test_one_label_only(tmp_path: Path, wordpiece: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n')
    with pytest.raises(DataError) as error:
        prepare_data(DataConfig(train=str(path), use_cache=False), wordpiece, CLASSES, 0)
    assert str(error.value) == f"{path} has one label only ('x'): expected two or more."
