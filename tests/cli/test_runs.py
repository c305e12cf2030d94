from __future__ import annotations

import json
import re

import pytest

from comparison.test_history import LOG, SETTINGS, SUMMARY, write_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "done", age=60)
    settings = SETTINGS | {"adapters": {"it": {"method": "ia3"}}}
    write_run(tmp_path / "runs" / "going", settings, summary=None)
    return tmp_path


def words_of(text: str, start: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.startswith(start))


def test_runs_are_listed(graft, folder, capsys):
    assert graft("runs") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("base model a/base\n")
    assert words_of(out, "done")[:8] == ["done", "lora", "20", "4", "2", "2.5", "s", "0.75"]
    assert words_of(out, "! going")[:5] == ["!", "going", "ia3", "10", "4"]
    (problem,) = re.findall(r"^! going: (.*)", out, re.M)
    assert problem.startswith("stopped or still under way: no summary.json yet (last written 20")


def test_it_fits_80_columns(graft, folder, capsys, monkeypatch):
    for number in range(3):
        write_run(folder / "runs" / f"a-rather-long-name-of-a-run-{number}")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert graft("runs", "runs") == 0
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_json_says_all_of_it(graft, folder, capsys):
    assert graft("runs", "runs", "--json") == 0
    done, going = json.loads(capsys.readouterr().out)
    assert done.pop("date").startswith("2001-09-09T")
    assert done == {
        "folder": "runs/done",
        "kind": "run",
        "finished": True,
        "problems": [],
        "base_model": "a/base",
        "method": "lora",
        "steps": 20,
        "eval_loss_before": 4.0,
        "eval_loss_after": 2.0,
        "seconds": 2.5,
        "peak_memory_gib": 0.75,
    }
    assert (going["finished"], going["steps"], going["eval_loss_after"]) == (False, 10, 2.5)


def test_two_runs_are_compared(graft, folder, capsys):
    summary = SUMMARY | {"steps": 30, "versions": {"torch": "2.14"}, "train_loss": 0.5}
    write_run(folder / "other", SETTINGS | {"revision": "main"}, summary)
    assert graft("runs", "runs/done", "other") == 0
    out = capsys.readouterr().out
    assert words_of(out, "revision") == ["revision", "-", "main"]
    assert words_of(out, "data, SHA-256")[-2:] == ["no", "difference"]
    assert words_of(out, "torch") == ["torch", "2.13", "2.14"]
    assert words_of(out, "steps") == ["steps", "20", "30", "+10", "(+50.0%)"]
    assert words_of(out, "train_loss") == ["train_loss", "-", "0.5"]
    assert graft("runs", "runs/done", "other", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"] == {"revision": [None, "main"]}
    assert told["results"]["steps"] == [20, 30]
    assert [run["folder"] for run in told["runs"]] == ["runs/done", "other"]


def test_two_folders_that_are_no_runs_are_searched(graft, folder, capsys):
    write_run(folder / "more" / "third")
    assert graft("runs", "runs", "more", "--json") == 0
    found = [run["folder"] for run in json.loads(capsys.readouterr().out)]
    assert found == ["runs/done", "runs/going", "more/third"]


def test_curves_are_drawn(graft, folder, capsys):
    write_run(folder / "runs" / "nothing yet", log="")
    plot = folder / "new" / "curves.png"
    assert graft("runs", "runs", "--plot", plot) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "2 curves: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "There is no folder nowhere."),
        (["runs/done", "nowhere"], "There is no folder nowhere."),
        (["runs", "--plot", "curves.jpg"], "it a name that ends in .png, not curves.jpg"),
        (["runs", "--plot", "runs"], "runs is a folder"),
        (["empty", "--plot", "x.png"], "There is no curve to draw"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(graft, folder, capsys, words, said):
    (folder / "empty").mkdir()
    assert graft("runs", *words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_no_runs_are_no_error(graft, folder, capsys):
    (folder / "empty").mkdir()
    assert graft("runs", "empty") == 0
    assert capsys.readouterr().out == f"no run in {folder / 'empty'}\n"
    assert graft("runs", "empty", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_what_a_file_says_does_nothing_in_a_terminal(graft, folder, capsys):
    name = "[red]\x1b[2J\u202e"
    settings = SETTINGS | {"base_model": name, "adapters": {name: {"method": name}}}
    write_run(folder / "a", settings, SUMMARY | {"base_model": name}, [*LOG, {"step": name}])
    write_run(folder / "b", settings | {name: name}, SUMMARY | {"base_model": name, name: 3})
    for words in (["."], ["a", "b"]):
        assert graft("runs", *words) == 0
        out = capsys.readouterr().out
        assert "[red]␛[2J‹U+202E›" in out
        assert "\x1b" not in out


def test_in_a_narrow_terminal_what_is_part_of_a_run_is_named_below_it(
    graft, folder, capsys, monkeypatch
):
    together = SETTINGS | {"adapters": {"a": {"method": "lora"}, "b": {"method": "ia3"}}}
    write_run(
        folder / "runs" / "both", together, {"adapters": {}, "base_model": "a/base"}, log=None
    )
    write_run(folder / "runs" / "both" / "bitfit-of-many")
    assert graft("runs") == 0
    assert "\nboth/bitfit-of-many " in capsys.readouterr().out  # whole in a pipe
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    assert graft("runs") == 0
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert re.search(r"^both +joint run .*\n  bitfit-of-many +lora ", out, re.M)
