"""The rules of the house that a test can hold: which room may know which, names, sizes."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import graft

SRC = Path(graft.__file__).parent
FILES = sorted(SRC.rglob("*.py"))

# Rooms from the ground up: each may import those below it, and from its own level what is named.
LEVELS = [
    {"errors", "visible"},
    {"atomic", "pages"},
    {"download"},
    {"config"},
    {"methods", "hub"},
    {"adapt"},
    {"auto", "packing"},
    {"data", "environment", "inspection", "training"},
    {"inference", "demo", "planning"},
    {"merging", "comparison"},
    {"cli"},
]
SIDEWAYS = {("environment", "data"), ("training", "data"), ("training", "inspection")}


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of graft that a file imports when it runs, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "graft":
                names = [f"graft.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("graft.")}
    return found


def _without_type_checking(tree: ast.Module) -> ast.Module:
    class Remover(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            named = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if named else self.generic_visit(node)

    return Remover().visit(tree)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_run_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return  # the public names, imported when they are used
    level = next(i for i, rooms in enumerate(LEVELS) if room in rooms)
    allowed = {room}.union(*LEVELS[:level])
    allowed |= {other for own, other in SIDEWAYS if own == room}
    assert imported_rooms(path) <= allowed


def test_every_room_has_a_level():
    assert {room_of(path) for path in FILES} - {"__init__"} == set().union(*LEVELS)


@pytest.mark.parametrize("room", ["methods", "errors.py", "config.py", "atomic.py"])
def test_methods_know_no_transformers(room):
    files = [SRC / room] if room.endswith(".py") else (SRC / room).rglob("*.py")
    for path in files:
        modules = {
            node.module.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module
        }
        assert "transformers" not in modules


def test_peft_is_an_oracle_and_no_dependency():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "peft" for name in names), path


def test_adapt_names_no_method():
    from graft.methods import METHODS

    classes = {cls.__name__ for cls in METHODS.values()}
    classes |= {cls.config_class.__name__ for cls in METHODS.values()}
    for path in (SRC / "adapt").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not classes & names, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_files_are_short_and_named_for_what_they_hold(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "say what it is for"


def test_public_names_are_there():
    for info in pkgutil.walk_packages([str(SRC)], "graft."):
        if not info.name.endswith("__main__"):
            module = importlib.import_module(info.name)
            assert all(hasattr(module, name) for name in getattr(module, "__all__", [])), info.name
