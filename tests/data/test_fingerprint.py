"""What changes the key of tokens, and what does not."""

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.fingerprint import code_sha256, file_sha256, tokens_key
from graft.data.sources import Source

ROWS = '{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "data.jsonl"
    path.write_text(ROWS)
    return Source(name="data.jsonl", files=(path,))


def key(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    task_type: TaskType = TaskType.CAUSAL_LM,
    **settings: Any,
) -> str | None:
    digests = [file_sha256(path) for path in source.files]
    return tokens_key(
        source, digests, tokenizer, DataConfig(train="data.jsonl", **settings), task_type
    )


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    assert file_sha256(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "prompt_completion"},
        {"columns": {"prompt": "question"}},
        {"tags": {"role_tag": "who"}},
        {"max_rows": 5},
    ],
)
def test_the_source_counts(
    changes: dict[str, Any], source: Source, byte_level: PreTrainedTokenizerBase
) -> None:
    changed = dataclasses.replace(source, **changes)
    assert key(changed, byte_level) != key(source, byte_level)


def test_content_counts_and_names_do_not(
    source: Source, byte_level: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    first = key(source, byte_level)
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_text(ROWS)
    other = dataclasses.replace(source, name="x", files=(moved,), weight=2.0)
    assert key(other, byte_level) == first
    as_text = tmp_path / "elsewhere.txt"  # another reader
    as_text.write_text(ROWS)
    assert key(dataclasses.replace(source, files=(as_text,)), byte_level) != first
    twice = dataclasses.replace(source, files=(*source.files, moved))
    assert key(twice, byte_level) != first
    source.files[0].write_text(ROWS.replace("b", "c"))
    assert key(source, byte_level) != first


def test_settings_count_where_they_decide_tokens(
    source: Source, byte_level: PreTrainedTokenizerBase
) -> None:
    first = key(source, byte_level)
    assert len({first, *(key(source, byte_level, max_length=n) for n in (8, 9))}) == 3
    assert key(source, byte_level, train_on="all") != first
    assert key(source, byte_level, TaskType.SEQ_2_SEQ_LM) != first
    assert key(source, byte_level, eval_fraction=0.5, use_cache=False, dataset_dir="x") == first


def _template(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages }}"


def _end(tokenizer: Any) -> None:
    tokenizer.eos_token = "<|im_end|>"


def _no_end(tokenizer: Any) -> None:
    tokenizer.eos_token = None


def _length(tokenizer: Any) -> None:
    tokenizer.model_max_length = 7


def _token(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("cat", single_word=True)])


def _spaces(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def _side(tokenizer: Any) -> None:
    tokenizer.truncation_side = "left"


def _special(tokenizer: Any) -> None:
    tokenizer.split_special_tokens = True


def _columns(tokenizer: Any) -> None:
    tokenizer.model_input_names = ["input_ids", "token_type_ids"]


@pytest.mark.parametrize(
    "change",
    [_template, _end, _no_end, _length, _token, _spaces, _side, _special, _columns],
    ids=lambda change: change.__name__,
)
def test_the_tokenizer_counts(
    change: Callable[[Any], None], source: Source, byte_level: PreTrainedTokenizerBase
) -> None:
    changed = copy.deepcopy(byte_level)
    assert key(source, changed) == key(source, byte_level)
    change(changed)
    assert key(source, changed) != key(source, byte_level)


def test_another_copy_of_the_tokenizer_is_the_same(
    source: Source, chatml: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        chatml.save_pretrained(tmp_path / folder)
    one, other = (type(chatml).from_pretrained(tmp_path / folder) for folder in ("a", "b"))
    before = key(source, one)
    assert key(source, other) == before
    other("the cat " * 50, truncation=True, max_length=5)
    assert other.backend_tokenizer.truncation is not None  # it leaves traces
    assert key(source, other) == before


def test_a_template_that_tells_the_day_is_good_for_a_day(
    source: Source, chatml: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    import graft.data.fingerprint as fingerprint

    dated = copy.deepcopy(chatml)
    dated.chat_template = '{{ strftime_now("%d %b %Y") }}' + str(chatml.chat_template)
    today = [key(source, tokenizer) for tokenizer in (chatml, dated)]

    class Tomorrow(fingerprint.date):
        @classmethod
        def today(cls) -> "Tomorrow":
            return cls.fromordinal(super().today().toordinal() + 1)

    monkeypatch.setattr(fingerprint, "date", Tomorrow)
    tomorrow = [key(source, tokenizer) for tokenizer in (chatml, dated)]
    assert tomorrow[0] == today[0]
    assert tomorrow[1] != today[1]


def test_a_tokenizer_written_in_python_has_no_key(source: Source) -> None:
    from transformers import ByT5Tokenizer

    assert key(source, ByT5Tokenizer()) is None


def test_the_code_counts(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "template.py").write_text("END = 1\n")
    (folders[1] / "sub" / "template.py").write_text("END = 2\n")
    (folders[2] / "sub" / "template.py").rename(folders[2] / "sub" / "templates.py")
    (folders[3] / "sub" / "notes.txt").write_text("")
    one, changed, renamed, same = map(code_sha256, folders)
    assert len({one, changed, renamed}) == 3
    assert same == one
