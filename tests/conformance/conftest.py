"""Every contract runs for every method on every family; what a family refuses is tested as such."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from graft.adapt.model import PeftModel
from graft.config import TaskType
from graft.methods import METHODS

from .cases import BASE, CASES, Case
from .families import FAMILIES, Family
from .rows import attach

Crowds = Callable[[TaskType], tuple[PeftModel, list[str]]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(rule): for which family (and case) a test is meant")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rules = [mark.args[0] for mark in metafunc.definition.iter_markers("only")]
    if {"family", "case"} <= set(metafunc.fixturenames):
        pairs = [(f, c) for f in FAMILIES for c in CASES if _runs(f, c)]
        pairs = [pair for pair in pairs if all(rule(*pair) for rule in rules)]
        ids = [f"{family.name}-{case.name}" for family, case in pairs]
        metafunc.parametrize(("family", "case"), pairs, ids=ids, indirect=["case"])
    elif "family" in metafunc.fixturenames:
        families = [f for f in FAMILIES if all(rule(f, None) for rule in rules)]
        metafunc.parametrize("family", families, ids=[family.name for family in families])


def _runs(family: Family, case: Case) -> bool:
    """Every method runs on every family; variants and the seventh method on some."""
    plain = case.method in METHODS.values() and not case.settings
    return not case.is_refused(family, family.task) and (plain or family.runs_variants)


@pytest.fixture
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A method of `METHODS`; the seventh is entered for the time of the test."""
    method = request.param.method
    monkeypatch.setitem(METHODS, method.config_class.peft_type, method)
    return request.param


@pytest.fixture
def crowd_of(family: Family, monkeypatch: pytest.MonkeyPatch) -> Crowds:
    """task -> a model with an adapter of every case, and a name for each of shuffled rows."""

    def make(task: TaskType) -> tuple[PeftModel, list[str]]:
        able = [case for case in CASES if not case.is_refused(family, task)]
        cases = [case for case in able if case.name not in family.shared]
        for case in cases:
            monkeypatch.setitem(METHODS, case.method.config_class.peft_type, case.method)
        names = [case.name for case in cases]
        rows = [names[-1], BASE, *names[:3], names[0], *names[3:-1], BASE]
        assert {*names, BASE} == set(rows)
        return attach(family.model(task), family, cases, task), rows

    return make


@pytest.fixture
def crowd(family: Family, crowd_of: Crowds) -> tuple[PeftModel, list[str]]:
    """`crowd_of` the family's own task."""
    return crowd_of(family.task)
