from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from graft.environment.machine import (
    Folder,
    folder_problems,
    look_at_folder,
    look_at_machine,
    look_at_python,
)

GIB = 2**30


@pytest.fixture
def limits(tmp_path) -> Path:
    """What a container with 1 GiB and half a core says of itself; 0.25 GiB of files were read."""
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB // 2}\n")
    (tmp_path / "memory.stat").write_text(f"anon {GIB // 4}\ninactive_file {GIB // 4}\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    return tmp_path


def test_this_machine(tmp_path):
    found = look_at_machine(tmp_path)
    assert found.memory_gib == psutil.virtual_memory().total / GIB
    assert 0 < found.free_memory_gib < found.memory_gib
    assert found.cores == os.cpu_count()
    assert 1 <= found.usable_cores <= found.cores
    assert found.cpu


def test_limits_of_a_container(limits):
    found = look_at_machine(limits)
    assert found.memory_gib == 1
    assert found.free_memory_gib == 0.75
    assert found.usable_cores == 1


def test_a_container_without_limits(limits):
    (limits / "memory.max").write_text("max\n")
    (limits / "cpu.max").write_text("max 100000\n")
    found = look_at_machine(limits)
    assert found.memory_gib == psutil.virtual_memory().total / GIB
    assert found.usable_cores == look_at_machine(limits / "nowhere").usable_cores


def test_this_python():
    found = look_at_python({})
    assert found.version == platform.python_version()
    assert found.executable == sys.executable
    assert found.virtual_environment == (sys.prefix if sys.prefix != sys.base_prefix else None)


def test_a_conda_environment(monkeypatch):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert look_at_python({"CONDA_PREFIX": "/conda"}).virtual_environment == "/conda"
    assert look_at_python({}).virtual_environment is None


def test_what_is_in_a_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(bytes(1000))
    (tmp_path / "deep" / "b").write_bytes(bytes(234))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    found = look_at_folder("test", tmp_path, "HF_HOME")
    assert found.used_gib == 1234 / GIB
    assert found.writable
    assert found.total_gib == shutil.disk_usage(tmp_path).total / GIB
    assert look_at_folder("test", tmp_path, None, count=False).used_gib is None


def test_a_folder_that_is_not_there_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = look_at_folder("test", Path("~/a/b"), "HF_HOME")
    assert found.path == str(tmp_path / "a" / "b")
    assert found.writable
    assert found.used_gib == 0
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    assert not look_at_folder("test", tmp_path / "file" / "cache", "HF_HOME").writable


def test_counting_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("graft.environment.machine._SECONDS_TO_COUNT", -1.0)
    assert look_at_folder("test", tmp_path, "HF_HOME").used_gib is None


FOLDER = Folder("cache", "/cache", "HF_HOME", True, 100.0, 200.0)


@pytest.mark.parametrize(
    ("folder", "cure"),
    [
        (FOLDER, None),
        (replace(FOLDER, free_gib=4.9), "export HF_HOME=/FOLDER/ON/ANOTHER/DISK"),
        (replace(FOLDER, writable=False), "export HF_HOME=/FOLDER/ON/ANOTHER/DISK"),
        (replace(FOLDER, free_gib=4.9, variable=None), "cd ANOTHER/FOLDER"),
    ],
)
def test_what_is_wrong_with_a_folder(folder, cure):
    problems = folder_problems([folder])
    assert [(problem.severity, problem.cure) for problem in problems] == (
        [("warning", cure)] if cure else []
    )
    assert all("/cache" in problem.what for problem in problems)
