"""Every contract runs for every method on every family; what a family refuses is tested as such."""

from __future__ import annotations

import pytest

from graft.methods import METHODS

from .families import FAMILIES, Family
from .rows import Method
from .toy import Gain

EVERY: list[Method] = [*METHODS.values(), Gain]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    families = FAMILIES
    if metafunc.module.__name__.endswith("test_generation"):
        families = [family for family in FAMILIES if family.generates]
    names = set(metafunc.fixturenames)
    if {"family", "method"} <= names:
        pairs = [(f, m) for f in families for m in EVERY if not _refuses(f, m)]
        ids = [f"{f.name}-{m.__name__}" for f, m in pairs]
        metafunc.parametrize(("family", "method"), pairs, ids=ids, indirect=["method"])
    elif "family" in names:
        metafunc.parametrize("family", families, ids=[f.name for f in families])


def _refuses(family: Family, method: Method) -> bool:
    return method.config_class.peft_type in family.refused


@pytest.fixture
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Method:
    """A method of `METHODS`; the seventh is entered for the time of the test."""
    monkeypatch.setitem(METHODS, request.param.config_class.peft_type, request.param)
    return request.param
