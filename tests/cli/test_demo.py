"""`graft demo`: a short run, as a user sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graft.cli import main
from graft.config import PeftConfig
from graft.demo import demo_model_path
from graft.demo.settings import SETTINGS


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    for method in ("ia3", "prefix_tuning"):
        monkeypatch.setitem(SETTINGS, method, replace(SETTINGS[method], steps=2))


def run(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main(["demo", *map(str, words)])
    return end.value.code


def test_it_ends_with_a_table_and_the_adapters(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--methods", "ia3,prefix-tuning", "--output-dir", out) == 0
    shown, err = capsys.readouterr()
    assert err == ""
    assert ["step 2/2  loss" in line for line in shown.splitlines()].count(True) == 2
    table = {words[0]: words[1:] for line in shown.splitlines() if len(words := line.split()) == 7}
    for method in ("ia3", "prefix_tuning"):
        config = PeftConfig.from_pretrained(out / method)
        assert config.base_model_name_or_path == str(demo_model_path())
        trainable, before, after, steps, seconds, _ = table[method]
        assert f"training {trainable} of" in shown
        assert steps == "2"
        assert f"base model: exact match {before} of" in shown
        assert f"exact match {after} after {seconds} s" in shown
    assert str(out) in shown.splitlines()[-1]


def test_without_a_folder_it_says_that_nothing_is_kept(capsys):
    assert run("--methods", "ia3") == 0
    assert "--output-dir" in capsys.readouterr().out.splitlines()[-1]


def test_what_the_user_can_mend(tmp_path, capsys):
    (tmp_path / "ia3").mkdir()
    for words, said in (
        (["--methods", "ia4"], "ia3"),
        (["--methods", "lora,ia3", "--output-dir", tmp_path], "holds ia3 already"),
    ):
        assert run(*words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err
        assert len(err.splitlines()) == 1
