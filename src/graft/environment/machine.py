"""Python, the machine and the folders that fill up."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from graft.atomic import nearest_existing
from graft.environment.problem import Problem

__all__ = [
    "Folder",
    "Machine",
    "Python",
    "folder_problems",
    "look_at_folder",
    "look_at_machine",
    "look_at_python",
]

_GIB = 2**30
_LITTLE_SPACE_GIB = 5.0  # less than the weights of a small base model and a run's checkpoints
_SECONDS_TO_COUNT = 0.5


@dataclass(frozen=True)
class Python:
    """The Python that runs.

    Attributes:
        version: Of the language.
        executable: Path of the program.
        virtual_environment: Path of the virtual or conda environment; None outside of one.
        platform: Operating system and processor.
    """

    version: str
    executable: str
    virtual_environment: str | None
    platform: str


@dataclass(frozen=True)
class Machine:
    """Processor and memory.

    Attributes:
        cpu: Model of the processor.
        cores: Logical cores of the machine.
        usable_cores: Those that this process may use, by affinity and by a container's quota.
        memory_gib: Main memory, or a container's limit where that is less.
        free_memory_gib: What can be taken of it without swapping.
    """

    cpu: str
    cores: int
    usable_cores: int
    memory_gib: float
    free_memory_gib: float


@dataclass(frozen=True)
class Folder:
    """A folder that runs write to.

    Attributes:
        purpose: What is kept in it.
        path: Where it is, or will be.
        variable: The environment variable that moves it; None for the current folder.
        writable: Whether files can be written there.
        free_gib: Free space on its disk.
        total_gib: Size of its disk.
        used_gib: What is in it; None where that takes too long to count, or is not asked.
    """

    purpose: str
    path: str
    variable: str | None
    writable: bool
    free_gib: float
    total_gib: float
    used_gib: float | None = None


def look_at_python(environ: Mapping[str, str]) -> Python:
    """The Python that runs this."""
    virtual = sys.prefix if sys.prefix != sys.base_prefix else environ.get("CONDA_PREFIX")
    return Python(platform.python_version(), sys.executable, virtual, platform.platform())


def look_at_machine(control_group: Path = Path("/sys/fs/cgroup")) -> Machine:
    """Processor and memory, as far as this process may use them.

    Args:
        control_group: Folder in which Linux states a container's limits.
    """
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit = _read(control_group / "memory.max")
    if limit.isdecimal() and int(limit) < total:  # else "max"
        statistics = dict(
            line.split() for line in _read(control_group / "memory.stat").splitlines()
        )
        # Pages of files that were read count as taken, and are given back when asked for.
        given_back = int(statistics.get("inactive_file", 0))
        taken = int(_read(control_group / "memory.current") or 0) - given_back
        total = int(limit)
        free = max(0, min(free, total - taken))
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else cores
    quota, _, period = _read(control_group / "cpu.max").partition(" ")
    if quota.isdecimal():
        usable = min(usable, math.ceil(int(quota) / int(period)))
    return Machine(_cpu_model(), cores, usable, total / _GIB, free / _GIB)


def look_at_folder(purpose: str, path: Path, variable: str | None, count: bool = True) -> Folder:
    """The folder `path` and its disk.

    Args:
        purpose: What is kept in it.
        path: It need not be there yet.
        variable: The environment variable that moves it.
        count: Whether to add up what is in it.
    """
    path = path.expanduser().absolute()
    there = nearest_existing(path)
    disk = shutil.disk_usage(there)
    return Folder(
        purpose,
        str(path),
        variable,
        there.is_dir() and os.access(there, os.W_OK | os.X_OK),
        disk.free / _GIB,
        disk.total / _GIB,
        _size_gib(path, time.monotonic() + _SECONDS_TO_COUNT) if count else None,
    )


def folder_problems(folders: Sequence[Folder]) -> list[Problem]:
    """Folders that cannot be written to, and disks that are nearly full."""
    problems = []
    for folder in folders:
        cure = "cd ANOTHER/FOLDER"
        if folder.variable is not None:
            cure = f"export {folder.variable}=/FOLDER/ON/ANOTHER/DISK"
        if not folder.writable:
            what = f"{folder.path} ({folder.purpose}) cannot be written to."
            problems.append(Problem("warning", what, cure))
        elif folder.free_gib < _LITTLE_SPACE_GIB:
            what = f"{folder.free_gib:.1f} GiB are free for {folder.path} ({folder.purpose})."
            problems.append(Problem("warning", what, cure))
    return problems


def _read(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _size_gib(folder: Path, deadline: float) -> float | None:
    """What the files below `folder` take on disk; None where the deadline comes first."""
    total, folders = 0, [folder] if folder.is_dir() else []
    while folders:
        if time.monotonic() > deadline:
            return None
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:  # one that may not be read, or is gone by now
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                total += entry.stat(follow_symlinks=False).st_size
    return total / _GIB


def _cpu_model() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
