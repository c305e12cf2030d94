"""Conversations remember what was said, and no more."""

from __future__ import annotations

import pytest

from graft.errors import ConfigError, DataError
from graft.inference import Conversation, Predictor, Sampling


def test_a_conversation_remembers(chatty):
    predictor = Predictor.load(chatty)
    sampling = Sampling(max_new_tokens=3)
    talk = Conversation(predictor, sampling, system="be kind")
    opening = [{"role": "system", "content": "be kind"}]
    first = talk.say("The cat", lambda piece: None)
    asked = [*opening, {"role": "user", "content": "The cat"}]
    assert first == predictor.generate([asked], sampling)[0]
    asked += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "A dog"},
    ]
    assert talk.say("A dog", lambda piece: None) == predictor.generate([asked], sampling)[0]
    assert len(talk.turns) == 5
    talk.reset()
    assert talk.turns == opening
    assert talk.say("The cat", lambda piece: None) == first


def test_an_answer_broken_off_counts_as_far_as_it_came(chatty):
    talk = Conversation(Predictor.load(chatty), Sampling(max_new_tokens=8))
    heard: list[str] = []

    def stop(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.say("The cat", stop)
    assert talk.turns[-1] == {"role": "assistant", "content": "".join(heard)}
    talk.say("A dog", heard.append)  # nothing is left of what was broken off
    assert len(talk.turns) == 4


def test_a_turn_that_got_no_answer_is_forgotten(chatty):
    talk = Conversation(Predictor.load(chatty))
    with pytest.raises(DataError, match="no room"):
        talk.say("fish " * 64, lambda piece: None)
    assert talk.turns == []


def test_without_a_template_each_line_is_for_itself(lora):
    predictor = Predictor.load(lora)
    talk = Conversation(predictor, Sampling(max_new_tokens=4))
    wanted = predictor.generate(["The cat", "A dog"], Sampling(max_new_tokens=4))
    assert [talk.say(text, lambda piece: None) for text in ("The cat", "A dog")] == wanted
    with pytest.raises(ConfigError, match="no place for a system"):
        Conversation(predictor, system="be kind")
