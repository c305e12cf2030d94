from __future__ import annotations

import pytest

from graft import errors
from graft.errors import GraftError, did_you_mean, nearest

NAMES = ["target_modules", "task_type", "modules_to_save", "r", "lora_alpha"]


def test_nearest_comes_best_first():
    assert nearest("target_module", NAMES) == ["target_modules"]
    assert nearest("q_porj", ["v_proj", "q_proj", "k_proj"])[0] == "q_proj"
    assert nearest("xyzzy", NAMES) == []


def test_nearest_ignores_case_and_gives_the_name_as_it_is():
    assert nearest("LORA_ALPHA", NAMES) == ["lora_alpha"]
    assert nearest("loss", ["Loss"]) == ["Loss"]


def test_nearest_gives_no_more_than_asked_and_none_twice():
    many = [f"layer_{i}" for i in range(9)] * 2
    assert len(nearest("layer_x", many, n=2)) == 2
    assert len(set(nearest("layer_x", many, n=9))) == 9


def test_did_you_mean_is_a_sentence_to_append():
    assert did_you_mean("target_module", NAMES) == " Did you mean target_modules?"
    assert did_you_mean("v_prj", ["v_proj", "q_proj"]) == " Did you mean v_proj or q_proj?"


def test_did_you_mean_lists_what_is_valid_where_nothing_is_near():
    assert did_you_mean("xyzzy", ["b", "a"]) == " Valid: a, b."
    many = [f"name{i:02}" for i in range(12)]
    assert did_you_mean("q", many) == f" Valid: {', '.join(many[:10])}, ...."
    assert did_you_mean("q", []) == ""


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n.endswith("Error")])
def test_one_except_catches_them_all(name: str):
    kind = getattr(errors, name)
    assert issubclass(kind, GraftError)
    with pytest.raises(GraftError, match="what to do"):
        raise kind("what to do")


def test_wrong_values_are_value_errors_too():
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.TargetError, ValueError)
