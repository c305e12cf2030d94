from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from graft.cli.data.lines import indented
from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.preview import preview
from graft.hub import load_tokenizer

ROWS = [{"prompt": f"The cat {n}", "completion": f" sees\na fish {n}"} for n in range(9)]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path) -> Path:
    return write(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def run_file(tmp_path, base_folder, rows) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"base_model: {base_folder}\ntask_type: CAUSAL_LM\nadapters: {{a: {{method: lora}}}}\n"
        f"data: {{train: {rows}, max_length: 60}}\ntrain: {{output_dir: {tmp_path / 'out'}}}\n"
    )
    return path


def test_help_names_both(graft, capsys):
    assert graft("data", "--help") == 0
    shown = capsys.readouterr().out
    assert "  preview  " in shown
    assert "  check  " in shown
    for verb in ("preview", "check"):
        assert graft("data", verb, "--help") == 0
        assert f"graft data {verb}" in capsys.readouterr().out
    assert graft("data", "chekc") == 2


def test_preview_marks_what_is_trained(graft, rows, base_folder, capsys):
    assert graft("data", "preview", rows, "--model", base_folder) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == str(rows)
    assert lines[1].startswith("9 rows, format prompt_completion, CAUSAL_LM, ")
    shown = [at for at, line in enumerate(lines) if line.startswith("row ")]
    assert len(shown) == 3
    for number, at in enumerate(shown):
        assert re.fullmatch(
            rf"row {number + 1}  \d+ tokens  \d+ trained \(\d+%\)  ends with </s>", lines[at]
        )
        assert lines[at + 1] == f"  The cat {number}⟦ sees↵"
        assert lines[at + 2] == f"  a fish {number}</s>⟧"


def test_preview_of_a_given_row_of_a_run_file(graft, run_file, capsys):
    assert graft("data", "preview", run_file, "--row", "5") == 0
    out = capsys.readouterr().out
    assert re.findall(r"^row (\d+)", out, re.M) == ["5"]
    assert "at most 60 tokens" in out
    assert graft("data", "preview", run_file, "--rows", "2", "max_length=30") == 0
    out = capsys.readouterr().out
    assert re.findall(r"^row (\d+)", out, re.M) == ["1", "2"]
    assert "at most 30 tokens" in out
    assert graft("data", "preview", run_file, "--random", "3") == 0
    assert len(re.findall(r"^row (\d+)", capsys.readouterr().out, re.M)) == 3


def test_settings_of_a_file(graft, tmp_path, base_folder, capsys):
    path = write(tmp_path / "a.jsonl", [{"q": "The cat", "a": " sees"}])
    words = ["columns.prompt=q", "--columns.completion", "a", "--max-length=16"]
    assert graft("data", "preview", path, "--model", base_folder, *words) == 0
    out = capsys.readouterr().out
    assert "⟦ sees</s>⟧" in out
    assert "at most 16 tokens" in out


def test_splits_of_a_folder(graft, tmp_path, base_folder, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS[:2])
    write(folder / "test.jsonl", ROWS[2:])
    words = ["data", "preview", folder, "--model", base_folder, "--rows", "1"]
    assert graft(*words) == 0
    assert "The cat 0⟦" in capsys.readouterr().out
    assert graft(*words, "split=test") == 0
    assert "The cat 2⟦" in capsys.readouterr().out


def test_preview_as_a_page(graft, rows, base_folder, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    words = ["data", "preview", rows, "--model", base_folder, "--html", page]
    assert graft(*words, "--rows", "1") == 0
    assert capsys.readouterr().out == f"1 example: {page}\n"
    assert graft(*words) == 0
    assert capsys.readouterr().out == f"3 examples: {page}\n"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    under_a_file = rows / "page.html"
    assert graft("data", "preview", rows, "--model", base_folder, "--html", under_a_file) == 2
    assert f"{rows} is a file" in capsys.readouterr().err


def test_colours_are_the_marks_on_a_terminal(rows, base_folder):
    """The learned tokens of the preview are those that the terminal colours, across wrapping."""
    from graft.cli.data.preview import _marked

    tokenizer = load_tokenizer(str(base_folder))
    config = DataConfig(train=str(rows))
    (found,) = preview(config, tokenizer, TaskType.CAUSAL_LM)
    console = Console(force_terminal=True, color_system="truecolor", width=24)
    (side,) = found.shown[0].sides
    text = _marked(side, found.task_type, console)
    coloured = "".join(text.plain[s.start : s.end] for s in text.spans if "green" in str(s.style))
    assert coloured == " sees↵\na fish 0</s>"
    assert "⟦" not in text.plain


def test_lines_are_wrapped_on_a_terminal_only():
    text = Text("one two three four five six\nseven")
    terminal = Console(force_terminal=True, width=26)
    lines = [line.plain.rstrip() for line in indented(text, terminal, 4, first=0)]
    assert lines == ["one two three four", "    five six", "    seven"]
    pipe = Console(force_terminal=False, width=26)
    lines = [line.plain for line in indented(text, pipe, 4)]
    assert lines == ["    one two three four five six", "    seven"]


def test_preview_of_tags(graft, tmp_path, base_folder, capsys):
    path = write(tmp_path / "a.jsonl", [{"tokens": ["The", "cat"], "tags": ["O", "B-pet"]}])
    words = ["--model", base_folder, "--task-type", "TOKEN_CLS"]
    assert graft("data", "preview", path, *words) == 0
    assert "  The/O cat/B-pet\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"prompt": "a", "completion": "b"}, "CAUSAL_LM"),
        ({"text": "a", "label": "b"}, "SEQ_CLS"),
        ({"tokens": ["a"], "tags": ["b"]}, "TOKEN_CLS"),
        (
            {"context": "a", "question": "b", "answers": {"text": ["a"], "answer_start": [0]}},
            "QUESTION_ANS",
        ),
    ],
)
def test_a_tokenizer_alone_is_enough_and_the_columns_tell_the_task(
    graft, row, task, base_folder, tmp_path, capsys
):
    alone = tmp_path / "tokenizer"
    alone.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_folder / name, alone)
    path = write(tmp_path / "a.jsonl", [row])
    assert graft("data", "preview", path, "--model", alone) == 0
    assert f", {task}, " in capsys.readouterr().out


def test_check_of_good_rows(graft, rows, base_folder, capsys):
    assert graft("data", "check", rows, "--model", base_folder) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"{rows}  9 rows"
    tokenizer = load_tokenizer(str(base_folder))
    tokens = sum(len(tokenizer(r["prompt"] + r["completion"])["input_ids"]) + 1 for r in ROWS)
    assert re.search(rf"^train +9 +{tokens} ", out, re.M)
    assert lines[-1] == "nothing would spoil the run; no remarks"


def test_check_of_bad_rows(graft, rows, base_folder, tmp_path, capsys):
    held = write(tmp_path / "held.jsonl", [*ROWS[:1], {"prompt": "A dog", "completion": " has"}])
    assert graft("data", "check", rows, f"eval={held}", "--model", base_folder) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("SPOILS"))
    assert lines[at].startswith("SPOILS  leakage: 1 evaluation row (50%): the prompt is trained")
    assert lines[at + 1] == f"        {held}, as in {rows}: row 1 (as 1)"
    assert lines[at + 2].startswith("        -> take them out of")
    assert lines[-1] == "1 finding would spoil the run; no remarks"


def test_check_shows_the_balance_of_labels(graft, tmp_path, base_folder, capsys):
    rows = [{"text": f"The cat {n}", "label": "yes" if n < 15 else "no\x1b[31m"} for n in range(20)]
    path = write(tmp_path / "a.jsonl", rows)
    words = ["--model", base_folder, "--task-type", "SEQ_CLS"]
    assert graft("data", "check", path, *words) == 0
    out = capsys.readouterr().out
    assert "labels of train: yes 15 (75%), no␛[31m 5 (25%)\n" in out
    assert graft("data", "preview", path, "--row", "20", *words) == 0
    out += capsys.readouterr().out
    assert "label no␛[31m" in out
    assert "\x1b" not in out


def test_check_as_json(graft, run_file, rows, capsys):
    write(rows, [*ROWS, ROWS[0]])
    assert graft("data", "check", run_file, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["origins"] == [{"name": str(rows), "rows": 10, "held": False}]
    assert report["train"]["rows"] == 10
    (found,) = report["findings"]
    assert (found["name"], found["severity"], found["count"]) == ("duplicates", "remark", 1)
    assert (found["where"], found["like"]) == ([f"{rows}:10"], [f"{rows}:1"])


def test_check_and_preview_know_positions_virtual_tokens_and_batches_of_a_run(
    graft, run_file, rows, capsys
):
    def findings(*words: str) -> dict:
        graft("data", "check", run_file, "--json", *words)
        return {f["name"]: f for f in json.loads(capsys.readouterr().out)["findings"]}

    write(rows, [*ROWS, {"prompt": "The cat", "completion": " sees a fish" * 60}])
    prompts = ["adapters.a={method: prompt_tuning, num_virtual_tokens: 5}"]
    for words, limit, more in (
        (["max_length=99"], 64, False),  # the base model has 64 positions
        (["max_length=63"], 63, True),
        (["max_length=60", *prompts], 59, False),
        (["max_length=58", *prompts], 58, True),
    ):
        found = findings(*words)["truncated-answers"]
        assert (found["count"], f"cutting to {limit} tokens" in found["what"]) == (1, True)
        assert found["cure"].startswith("raise max_length") == more
        assert graft("data", "preview", run_file, "--row", "10", *words) == 0
        assert f"cut to {limit} tokens" in capsys.readouterr().out
    assert "few-rows" not in findings("gradient_accumulation_steps=1")
    assert findings("gradient_accumulation_steps=2")["few-rows"]["count"] == 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ROWS"], "name the base model that it is for, with --model"),
        (["nowhere.jsonl", "--model", "BASE"], "nowhere.jsonl does not exist"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["ROWS", "--model", "BASE", "max_lenght=5"], "Did you mean max_length"),
        (["ROWS", "--model", "BASE", "cutoff_len=5"], "max_length"),
        (["ROWS", "--model", "BASE", "--task-type", "CAUSAL"], "Did you mean CAUSAL_LM"),
        (["ROWS", "--model", "BASE", "format=text"], "no column 'text'"),
        (["ROWS", "--model", "./none"], "no folder ./none"),
    ],
)
@pytest.mark.parametrize("verb", ["preview", "check"])
def test_what_the_user_can_mend(graft, rows, base_folder, capsys, verb, words, said):
    names = {"ROWS": rows, "BASE": base_folder}
    assert graft("data", verb, *(names.get(word, word) for word in words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_row_that_is_not_there(graft, rows, base_folder, capsys):
    assert graft("data", "preview", rows, "--model", base_folder, "--row", "10") == 2
    assert f"no row 10: {rows} has the rows 1 to 9" in capsys.readouterr().err
    assert graft("data", "preview", rows, "--model", base_folder, "--row", "0") == 2
    assert "no row 0" in capsys.readouterr().err
    assert graft("data", "preview", rows, "--model", base_folder, "--rows", "0") == 2
    assert "rows is 0: expected 1 or more" in capsys.readouterr().err


def test_in_a_pipe_nothing_is_broken_or_coloured(graft, tmp_path, base_folder, capsys):
    long = {"prompt": "The cat " * 12, "completion": " sees\x1b[31m a fish"}
    path = write(tmp_path / "rows.jsonl", [long])
    assert graft("data", "preview", path, "--model", base_folder) == 0
    out = capsys.readouterr().out
    assert "  " + "The cat " * 12 + "⟦ sees␛[31m a fish</s>⟧\n" in out
    assert "\x1b" not in out


def test_a_tokenizer_alone_has_no_end(graft, tmp_path, base_folder, capsys):
    """Without a config nobody knows the positions; the rows are shown all the same."""
    load_tokenizer(base_folder).save_pretrained(tmp_path / "alone")
    path = write(tmp_path / "rows.jsonl", [{"prompt": "The cat " * 40, "completion": " sees"}])
    assert graft("data", "preview", path, "--model", tmp_path / "alone") == 0
    assert "⟦ sees</s>⟧" in capsys.readouterr().out
    assert graft("data", "preview", path, "--model", base_folder) == 0
    assert "nothing is left to learn in its first 64 tokens" in capsys.readouterr().out
