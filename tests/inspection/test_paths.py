"""A regular expression on every path of modules; the standard library is the oracle."""

from __future__ import annotations

import re

import pytest

from graft import LoraConfig
from graft.errors import TargetError
from graft.inspection import inspect
from tiny import tiny_llama

PATHS = [path for path, _ in tiny_llama().named_modules() if path]


@pytest.mark.parametrize(
    "pattern", [r".*\.(q|v)_proj", "q_proj", r"model\.layers\.\d", r".*", "(?i).*Q_PROJ", "nothing"]
)
def test_every_path_is_matched_or_in_part_or_not(pattern):
    found = inspect(tiny_llama(), regex=pattern).regex
    assert found is not None
    assert found.matched == tuple(p for p in PATHS if re.fullmatch(pattern, p))
    assert found.partly == tuple(
        p for p in PATHS if re.search(pattern, p) and not re.fullmatch(pattern, p)
    )
    assert found.others == tuple(p for p in PATHS if not re.search(pattern, p))


@pytest.mark.parametrize("pattern", [r".*\.(q|v)_proj", r".*\.1\..*", "lm_head|.*embed.*"])
def test_layers_are_those_that_target_modules_would_hit(pattern):
    """Modules that no method can adapt may match as well, and are none of them."""
    found = inspect(tiny_llama(), LoraConfig(target_modules=pattern), regex=pattern)
    assert found.regex is not None
    assert found.adapter is not None
    norms = {path for path in found.regex.layers if "norm" in path}
    assert set(found.regex.layers) - norms == set(found.adapter.patterns[0].layers)
    assert found.regex.advice == ()


def test_what_would_hit_nothing_says_what_to_write():
    found = inspect(tiny_llama(), regex="q_proj").regex
    assert found is not None
    (advice,) = found.advice
    assert "Put `.*` in front: '.*q_proj' matches 2 paths." in advice
    # A module that no method adapts is matched, and still nothing would be hit.
    found = inspect(tiny_llama(), regex=r".*self_attn").regex
    assert found is not None
    assert len(found.matched) == 2
    assert found.layers == ()
    assert "'.*self_attn.*' matches 8 paths" in found.advice[0]


def test_a_name_that_nothing_has_beside_one_that_matches():
    found = inspect(tiny_llama(), regex=r".*(q_proj|v_porj)").regex
    assert found is not None
    assert found.advice == ("Nothing is called 'v_porj'. Did you mean v_proj or q_proj or o_proj?",)


def test_a_name_that_nothing_has_where_nothing_would_be_hit():
    found = inspect(tiny_llama(), regex="q_proj|v_porj").regex
    assert found is not None
    near, unknown = found.advice
    assert "Put `.*` in front: '.*(q_proj|v_porj)' matches 2 paths." in near
    assert unknown.startswith("Nothing is called 'v_porj'.")
    found = inspect(tiny_llama(), regex="v_porj").regex
    assert found is not None
    assert len(found.advice) == 1  # it is said there
    found = inspect(tiny_llama(), regex="zzz").regex
    assert found is not None
    assert len(found.advice) == 1  # with the names of layers, not of all modules


def test_what_is_no_regular_expression():
    with pytest.raises(TargetError, match=r"regex='\(q' is not a regular expression"):
        inspect(tiny_llama(), regex="(q")
