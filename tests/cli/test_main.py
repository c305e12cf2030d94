from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from graft.cli import GROUPS, VERBS, _ending_well, main
from graft.errors import ConfigError, GraftError


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


class Ours(RuntimeError):
    """As `graft.training.loop.TrainingError` is."""

    __module__ = "graft.somewhere"


def ending(error: BaseException, debug: bool = False):
    def fail() -> None:
        raise error

    return _ending_well(fail, debug)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("`r` is wrong."), 2, "graft: `r` is wrong.\n"),
        (Ours("The loss is gone."), 1, "graft: The loss is gone.\n"),
        (ValueError("what?"), 1, "graft: ValueError: what? (see --debug)\n"),
        (KeyboardInterrupt(), 130, "graft: stopped.\n"),
        (KeyboardInterrupt("stopped at 3."), 130, "graft: stopped at 3.\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(capsys, error, code, line):
    with pytest.raises(typer.Exit) as end:
        ending(error)()
    assert end.value.exit_code == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [ConfigError("bad"), ValueError("bad")])
def test_debug_shows_where(error):
    with pytest.raises(type(error)) as caught:
        ending(error, debug=True)()
    assert caught.value is error


def test_every_graft_error_is_the_users():
    for kind in GraftError.__subclasses__():
        with pytest.raises(typer.Exit) as end:
            ending(kind("x"))()
        assert end.value.exit_code == 2


def test_help_lists_every_verb(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb} " in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys, verb):
    assert run(verb, "--help") == 0
    assert f"graft {verb}" in capsys.readouterr().out


def test_verbs_of_a_verb_have_help_and_one_sentence_too(capsys):
    for verb, verbs in GROUPS.items():
        assert run(verb, "--help") == 0
        shown = capsys.readouterr().out
        assert all(f"  {inner} " in shown for inner in verbs)
        for inner in verbs:
            assert run(verb, inner, "--help") == 0
            assert f"graft {verb} {inner}" in capsys.readouterr().out
            assert run(verb, inner, "nowhere.yaml") == 2
            assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("words", [["trian"], ["train"], ["data", "chekc"], ["data"], []])
def test_a_wrong_call_is_the_users(capsys, words):
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert "Usage: graft" in out + err


@pytest.mark.parametrize(
    ("words", "loaded"),
    [(["--help"], []), (["data", "--help"], ["pydantic"])],  # typer's own, once a verb is named
)
def test_help_loads_nothing_heavy(words, loaded):
    """This is what keeps `graft --help` below half a second."""
    code = (
        "import sys\n"
        "from graft.cli import main\n"
        f"try:\n    main({words})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pydantic', 'matplotlib', 'numpy'}"
        " & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == str(loaded)
