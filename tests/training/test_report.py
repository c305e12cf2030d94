from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from graft.errors import CheckpointError
from graft.training.report import LogFile, Start, Terminal, draw_losses

START = Start(
    step=0, steps=20, rows=1234, eval_rows=5, trainable=50, parameters=1000, device="cpu",
    batches="rows are packed",
)  # fmt: skip
RECORD = {
    "step": 10,
    "epoch": 0.5,
    "loss": 2.34567,
    "learning_rate": 1e-4,
    "grad_norm": 0.5,
    "tokens": 1000,
    "seconds": 100.0,
    "tokens_per_second": 10.0,
    "peak_memory_gib": 0.5,
}


def make_terminal(**options) -> tuple[Terminal, io.StringIO]:
    text = io.StringIO()
    return Terminal(Console(file=text, width=200, **options)), text


def tell(terminal: Terminal, *adapters: str | None) -> None:
    terminal.note("[precision] float32")
    for line in [terminal.of(adapter) for adapter in adapters]:
        line.on_start(START)
        line.on_evaluate({"step": 0, "eval_loss": 4.0, "eval_perplexity": 54.6})
        for step in range(1, 11):
            line.on_step(step)
        line.on_log(RECORD)
    terminal.on_end()


def test_plain_lines_where_there_is_no_terminal():
    terminal, text = make_terminal()
    tell(terminal, None)
    lines = text.getvalue().splitlines()
    assert lines[0] == "[precision] float32"
    for fact in ("50 of 1,000", "5.00%", "1,234 rows", "5 to evaluate on", "20 steps", "cpu"):
        assert fact in lines[1]
    assert lines[2] == "batches: rows are packed"
    assert "before training" in lines[3]
    assert "perplexity 54.6" in lines[3]
    for fact in ("10/20", "loss 2.3457", "lr 1.00e-04", "10 tokens/s", "0.50 GiB", "0:01:40 left"):
        assert fact in lines[4]
    assert len(lines) == 5


def test_a_bar_on_a_terminal():
    terminal, text = make_terminal(force_terminal=True)
    tell(terminal, None)
    assert "10/20" in text.getvalue()
    assert "loss 2.3457" in text.getvalue()


def test_each_of_several_adapters_has_lines_of_its_own():
    terminal, text = make_terminal()
    tell(terminal, "a", "b")
    lines = text.getvalue().splitlines()
    assert sum(line.startswith("a: step 10/20  loss 2.3457") for line in lines) == 1
    assert sum(line.startswith("b: step 10/20  loss 2.3457") for line in lines) == 1
    terminal, text = make_terminal(force_terminal=True)
    tell(terminal, "first", "[second]")
    bars = [line for line in text.getvalue().splitlines() if "10/20" in line]
    assert any("first" in line for line in bars)
    assert any("[second]" in line for line in bars)


def test_memory_is_left_out_where_the_system_does_not_tell():
    terminal, text = make_terminal()
    terminal.of(None).on_log(RECORD | {"peak_memory_gib": None})
    assert "GiB" not in text.getvalue()


def write_log(path, *steps) -> None:
    path.write_text("".join(json.dumps({"step": s, "loss": 1 / (s + 3)}) + "\n" for s in steps))


def test_a_new_run_starts_a_new_log(tmp_path):
    path = tmp_path / "out" / "train_log.jsonl"
    log = LogFile(path, step=0)
    assert not path.parent.exists()
    log.on_start(START)
    log.on_log({"step": 1, "loss": 0.1})
    log.on_evaluate({"step": 1, "eval_loss": 0.2})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == [{"step": 1, "loss": 0.1}, {"step": 1, "eval_loss": 0.2}]


@pytest.mark.parametrize("cut", ["", '{"step": 9', "{"])
def test_a_resumed_log_forgets_what_is_done_again(tmp_path, cut):
    path = tmp_path / "train_log.jsonl"
    write_log(path, 0, 2, 4, 4, 6, 8)
    with path.open("a") as file:
        file.write(cut)  # a crash in the middle of a line
    log = LogFile(path, step=4)
    log.on_start(START)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 2, 4, 4]
    assert records == log.kept
    assert records[1]["loss"] == 1 / 5  # to the last bit


def test_a_line_cut_short_right_after_the_checkpoint(tmp_path):
    path = tmp_path / "train_log.jsonl"
    write_log(path, 2, 4)
    path.write_text(path.read_text() + '{"st')
    assert [record["step"] for record in LogFile(path, step=4).kept] == [2, 4]


def test_a_broken_log_is_named(tmp_path):
    path = tmp_path / "train_log.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(CheckpointError, match="line 1"):
        LogFile(path, step=4)


@pytest.mark.parametrize(
    "records",
    [[], [{"step": 1, "loss": 2.0}], [{"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.0}]],
)
def test_draws_a_picture(tmp_path, records):
    draw_losses({"": records, "other": records}, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
