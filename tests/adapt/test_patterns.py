"""Why a regular expression matches no path, and what to write instead."""

from __future__ import annotations

import re

import pytest

from graft.adapt.patterns import near_miss, read_pattern, unknown_names
from graft.errors import TargetError

PATHS = ["model.embed_tokens"]
PATHS += [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("attn.q_proj", "mlp.up_proj")]


@pytest.mark.parametrize(
    ("text", "place", "instead"),
    [
        ("q_proj", "in front", ".*q_proj"),
        ("^q_proj$", "in front", ".*q_proj"),
        ("q_proj|up_proj", "in front", ".*(q_proj|up_proj)"),
        ("model.layers", "behind", "model.layers.*"),
        (r"\.0\.", "in front and behind", r".*\.0\..*"),
    ],
)
def test_what_matches_a_part_only(text, place, instead):
    said = near_miss(re.compile(text), PATHS)
    count = sum(bool(re.fullmatch(instead, path)) for path in PATHS)
    assert count
    assert said.endswith(f"Put `.*` {place}: {instead!r} matches {count} paths.")
    example = next(path for path in PATHS if re.search(text.strip("^$"), path))
    assert f"such as {example!r}; it matches a part only." in said


def test_one_path_is_no_paths():
    assert near_miss(re.compile("embed"), PATHS).endswith("'.*embed.*' matches 1 path.")


@pytest.mark.parametrize("text", ["q_porj", r".*\.q_porj", "(?i)q_porj", r"model\.\w+\.q_porj"])
def test_a_name_that_nothing_has(text):
    said = near_miss(re.compile(text), PATHS)
    assert said.endswith(
        "it matches none. Nothing is called 'q_porj'. Did you mean q_proj or up_proj?"
    )


def test_names_in_no_such_order_are_shown_a_path_that_has_them():
    said = near_miss(re.compile("layers.up_proj"), PATHS)
    assert said == "must match a whole path, such as 'model.layers.0.mlp.up_proj'; it matches none."
    # Without a name to go by, the example lies in a layer.
    assert "'model.layers.0.attn.q_proj'" in near_miss(re.compile("[0-9]+"), PATHS)


def test_without_paths_there_is_no_example():
    assert "(none)" in near_miss(re.compile("a"), [])


def test_a_name_may_hide_behind_one_that_matches():
    assert unknown_names(re.compile(r".*\.(q_proj|up_porj)"), PATHS) == [
        "Nothing is called 'up_porj'. Did you mean up_proj or q_proj?"
    ]
    assert unknown_names(re.compile(r".*\.(q|up)_proj|.*emb\w+"), PATHS) == []


def test_what_is_no_regular_expression():
    with pytest.raises(TargetError, match=r"regex='\(a' is not a regular expression: missing \)"):
        read_pattern("regex", "(a")
    assert read_pattern("regex", "a.b").fullmatch("a.b")
