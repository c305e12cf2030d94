"""Every fact about the environment, and every problem."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from graft.environment.hubs import Hub, Question, hub_problems
from graft.environment.machine import (
    Folder,
    Machine,
    Python,
    folder_problems,
    look_at_folder,
    look_at_machine,
    look_at_python,
)
from graft.environment.packages import DISTRIBUTION, Package, look_at_packages, package_problems
from graft.environment.problem import Problem
from graft.environment.settings import setting_problems, shown_settings
from graft.environment.torch_build import Torch, look_at_torch, torch_problems

__all__ = ["Environment", "examine"]


@dataclass(frozen=True)
class Environment:
    """What graft runs on, and what is wrong with it.

    Attributes:
        graft: Version of graft; None where it runs without being installed.
        python: The Python that runs.
        machine: Processor and memory.
        torch: torch, its build and its devices.
        packages: Versions of what graft needs or can use.
        folders: Caches and the current folder, with their disks.
        settings: Environment variables that matter; None where one is not set.
        plain_names: The hub that `ORG/NAME` alone means, `hf` or `ms`; None where the hubs'
            client cannot be imported.
        hubs: Whether they answer.
        problems: What is wrong, the worst first.
    """

    graft: str | None
    python: Python
    machine: Machine
    torch: Torch
    packages: tuple[Package, ...]
    folders: tuple[Folder, ...]
    settings: dict[str, str | None]
    plain_names: str | None
    hubs: tuple[Hub, ...]
    problems: tuple[Problem, ...]

    @property
    def works(self) -> bool:
        """Whether graft can work in it."""
        return not any(problem.severity == "error" for problem in self.problems)


def examine(timeout: float = 3.0) -> Environment:
    """Look at everything; nothing is changed, and no variable's secret is read out.

    Args:
        timeout: Seconds to wait for the hubs, which are asked while the rest is looked at.
    """
    environ = os.environ
    question = Question(environ, timeout)
    machine = look_at_machine()
    packages = look_at_packages()
    torch = look_at_torch(machine)
    folders = tuple(_folders(environ))
    plain_names = _plain_names()
    hubs = question.answers()
    problems = [
        *package_problems(packages),
        *torch_problems(torch, machine.usable_cores, environ),
        *folder_problems(folders),
        *setting_problems(environ, plain_names),
        *hub_problems(hubs, environ, plain_names),
    ]
    order = ("error", "warning", "hint")
    return Environment(
        _version(),
        look_at_python(environ),
        machine,
        torch,
        packages,
        folders,
        shown_settings(environ),
        plain_names,
        hubs,
        tuple(sorted(problems, key=lambda problem: order.index(problem.severity))),
    )


def _version() -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(DISTRIBUTION)
    return None


def _folders(environ: Mapping[str, str]) -> Iterator[Folder]:
    yield look_at_folder("the current folder", Path(), None, count=False)
    with suppress(Exception):  # of a package that is missing or broken: a problem of its own
        from huggingface_hub import constants

        home, cache = Path(constants.HF_HOME), Path(constants.HF_HUB_CACHE)
        yield look_at_folder("cache of Hugging Face", home, "HF_HOME")
        if not cache.is_relative_to(home):
            yield look_at_folder("models of Hugging Face", cache, "HF_HUB_CACHE")
    modelscope = Path(environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope")
    yield look_at_folder("cache of ModelScope", modelscope, "MODELSCOPE_CACHE")
    with suppress(Exception):
        from graft.data.cache import cache_folder

        yield look_at_folder("tokenised rows of graft", cache_folder(), "GRAFT_CACHE")


def _plain_names() -> str | None:
    with suppress(Exception):
        from graft.download import default_hub

        return default_hub()
    return None
