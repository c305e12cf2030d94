from __future__ import annotations

from dataclasses import fields

import pytest

from graft.environment import Environment, Problem, examine
from graft.environment.report import _folders, _plain_names


@pytest.fixture
def somewhere(monkeypatch, tmp_path):
    """Caches and hubs that are the test's own."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "graft"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")  # the port of discarding
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stale(tmp_path, monkeypatch):
    """A package that is older than graft needs, by its metadata."""
    about = tmp_path / "site" / "accelerate-0.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: accelerate\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(about.parent)


def test_what_is_examined(somewhere, stale):
    found = examine(timeout=0.5)
    assert [hub.reachable for hub in found.hubs] == [None, False]  # tests are offline by choice
    assert found.plain_names == "hf"
    assert found.torch.devices[0].products
    assert found.settings["HF_HUB_OFFLINE"] == "1"
    assert not found.works
    first, *others = found.problems
    assert first.severity == "error"
    assert first.cure.startswith("pip install --upgrade 'accelerate>=")
    assert "error" not in {problem.severity for problem in others}


def test_folders_are_where_the_variables_say(somewhere):
    found = {folder.variable: folder.path for folder in _folders({"MODELSCOPE_CACHE": "/ms"})}
    assert found[None] == str(somewhere)
    assert found["MODELSCOPE_CACHE"] == "/ms"
    assert found["GRAFT_CACHE"] == str(somewhere / "graft")
    assert "HF_HOME" in found


def test_models_apart_from_the_rest_of_a_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = {folder.variable: folder.path for folder in _folders({})}
    assert found["HF_HUB_CACHE"] == str(tmp_path)


def test_plain_names_follow_the_variable(monkeypatch):
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert _plain_names() == "ms"


@pytest.mark.parametrize(
    ("severity", "works"), [("error", False), ("warning", True), ("hint", True)]
)
def test_only_an_error_keeps_graft_from_working(severity, works):
    facts = dict.fromkeys(field.name for field in fields(Environment))
    made = Environment(**{**facts, "problems": (Problem(severity, "", ""),)})
    assert made.works is works
