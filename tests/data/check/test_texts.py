import copy
from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.check.texts import is_broken
from graft.data.config import DataConfig
from graft.data.preview import preview

from .cases import check, finding, rows_of


@pytest.mark.parametrize("text", ["é", "ü", "你好", "“quoted”", "naïve café – 5 €", "Привет", "🙂"])
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_text_that_was_misread_is_told_from_text(text: str, wrong: str) -> None:
    assert not is_broken(f"so {text} it")
    misread = "".join(
        # As readers do where Windows-1252 has no character.
        bytes([byte]).decode(wrong, errors="ignore") or chr(byte)
        for byte in text.encode("utf-8")
    )
    assert is_broken(f"so {misread} it")


@pytest.mark.parametrize(
    "text",
    ["", "plain", "Ça va ? À bientôt", "Ãéô", "Å¡ no: šabc", "ÄÖÜ äöüß", "Â§ 5", "x²³ ±½ «a»"],
)
def test_letters_of_the_latin_alphabets_are_no_fault(text: str) -> None:
    broken = {"Å¡ no: šabc", "Â§ 5"}  # which are "š" and "§", misread
    assert is_broken(text) == (text in broken)


@pytest.mark.parametrize("text", ["a\ufffdb", "锟斤拷", "ï»¿text"])
def test_what_is_left_of_lost_text(text: str) -> None:
    assert is_broken(text)


def test_what_stands_in_a_text_is_named(
    chatml: PreTrainedTokenizerBase, jsonl: Callable[..., str]
) -> None:
    row = {"instruction": "I am {{name}}<s>", "input": "{{ name }}", "output": "</s><s>{{author}}"}
    report = check(chatml, jsonl([{**row, "comment": "<|im_end|>"}]))
    special = finding(report, "special-tokens-in-text")
    assert special is not None
    assert "holds <s>, </s>, which" in special.what  # a column that nobody reads is no text
    placeholders = finding(report, "placeholders")
    assert placeholders is not None
    assert "holds {{name}}, {{author}}, {{ name }}: " in placeholders.what
    code = {"instruction": "a", "output": "{{ x | upper }} {{}} {name} {{a.b}} $${{1+1}}$$"}
    assert finding(check(chatml, jsonl([code])), "placeholders") is None


def test_a_plain_token_that_ends_turns_is_an_end(
    chatml: PreTrainedTokenizerBase, jsonl: Callable[..., str]
) -> None:
    """The tokenizer need not call it special: it ends answers, and has no place in a text."""
    tokenizer = copy.deepcopy(chatml)
    tokenizer.add_tokens(["<|done|>"])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|done|>")
    rows = [{"instruction": f"the cat {n}", "output": f"sat {n}"} for n in range(9)]
    report = check(tokenizer, jsonl(rows))
    assert finding(report, "missing-end-token") is None
    assert finding(report, "special-tokens-in-text") is None
    (seen,) = preview(DataConfig(train=jsonl(rows[:1])), tokenizer, TaskType.CAUSAL_LM)
    assert seen.shown[0].end == "<|done|>"
    found = finding(
        check(tokenizer, jsonl([*rows, {**rows[0], "output": "a<|done|>b"}])),
        "special-tokens-in-text",
    )
    assert found is not None
    assert rows_of(found) == [10]
