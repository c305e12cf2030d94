from __future__ import annotations

import builtins
import io
import sys
from collections.abc import Iterator

import pytest

from graft.inference import Conversation, Predictor, Sampling

SHORT = ["--max-new-tokens", "3"]


@pytest.fixture
def piped(graft, lora, monkeypatch):
    """Runs `graft chat` with these lines on its standard input; returns the exit code."""

    def run(text: str, *words: str) -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return graft("chat", lora, *SHORT, *words)

    return run


@pytest.fixture
def typed(graft, lora, monkeypatch):
    """Runs `graft chat` with a person who types these lines, or presses Ctrl-C or Ctrl-D."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def run(*lines: str | type[BaseException]) -> int:
        coming: Iterator[str | type[BaseException]] = iter(lines)

        def read(prompt: str) -> str:
            assert prompt == "> "
            line = next(coming)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr(builtins, "input", read)
        return graft("chat", lora, *SHORT)

    return run


@pytest.fixture(scope="module")
def said(lora) -> list[str]:
    """The answers of one conversation."""
    talk = Conversation(Predictor.load(lora), Sampling(max_new_tokens=3))
    return [talk.say(text, lambda piece: None).text for text in ("The cat", "A dog")]


def test_each_line_of_a_pipe_is_a_turn(piped, lora, base_folder, said, capsys):
    assert piped("The cat\n\nA dog\n/reset\nThe cat") == 0
    out, err = capsys.readouterr()
    assert out == f"{said[0]}\n{said[1]}\n{said[0]}\n"
    first, *_ = err.splitlines()
    assert str(lora) in first
    assert str(base_folder) in first
    assert "LORA" in first
    assert "A new conversation." in err
    assert "(cut off after 3 tokens)" in err


def test_exit_ends_it(piped, said, capsys):
    assert piped("The cat\n/exit\nA dog\n") == 0
    assert capsys.readouterr().out == f"{said[0]}\n"


def test_a_command_that_does_not_exist(piped, capsys):
    assert piped("/rest\n/etc is a folder\n") == 0
    out, err = capsys.readouterr()
    assert "no command /rest: /reset, /exit" in err
    assert out.count("\n") == 1  # what only begins with a slash is said to the model


def test_the_system_message(piped, lora, capsys):
    assert piped("The cat\n", "--system", "be kind") == 0
    talk = Conversation(Predictor.load(lora), Sampling(max_new_tokens=3), "be kind")
    assert capsys.readouterr().out == talk.say("The cat", lambda piece: None).text + "\n"


def test_a_person_talks_until_ctrl_d(typed, said, capsys):
    assert typed("The cat", "", "A dog", EOFError) == 0
    out, err = capsys.readouterr()
    assert out == f"{said[0]}\n{said[1]}\n\n"
    assert "/reset" in err
    assert "Ctrl-D" in err


def test_ctrl_c_drops_a_line_and_does_not_end(typed, said, capsys):
    assert typed(KeyboardInterrupt, "The cat", EOFError) == 0
    out, err = capsys.readouterr()
    assert out == f"{said[0]}\n\n"
    assert "/exit or Ctrl-D ends." in err


def stop_after_a_piece(monkeypatch) -> None:
    def interrupted(self, text, on_text):
        on_text("so far")
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "say", interrupted)


def test_ctrl_c_stops_an_answer_only(typed, monkeypatch, capsys):
    stop_after_a_piece(monkeypatch)
    assert typed("The cat", "A dog", EOFError) == 0
    out, err = capsys.readouterr()
    assert out == "so farso far\n"
    assert err.count("(stopped)") == 2


def test_ctrl_c_ends_what_reads_a_pipe(piped, monkeypatch, capsys):
    stop_after_a_piece(monkeypatch)
    assert piped("The cat\nA dog\n") == 130
    assert capsys.readouterr().out == "so far"


def test_a_text_too_long_ends_a_pipe_but_not_a_talk(piped, typed, said, capsys):
    assert piped("fish " * 99 + "\nThe cat\n") == 2
    assert "reads at most 64" in capsys.readouterr().err
    assert typed("fish " * 99, "The cat", EOFError) == 0
    out, err = capsys.readouterr()
    assert out == f"{said[0]}\n\n"
    assert "/reset begins a new conversation" in err


def test_without_turns_it_says_so(graft, plain, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("The cat\nThe cat\n"))
    assert graft("chat", plain, *SHORT) == 0
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first == second
    assert "without turns" in err


def test_what_the_user_can_mend(graft, classifier, plain, capsys):
    for words, said in (
        ([classifier], "SEQ_CLS cannot chat"),
        ([plain, "--system", "be kind"], "chat template"),
        (["./nowhere"], "no adapter folder"),
    ):
        assert graft("chat", *words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err
        assert len(err.splitlines()) == 1
