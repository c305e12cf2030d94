"""Packages: whether they can be imported, and the versions installed, tested and needed.

The tested set is `tested.txt`, the copy of the repository's constraints.txt that is installed
with graft. The oldest versions are those of graft's own metadata.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata, resources

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from graft.environment.problem import Problem

__all__ = ["DISTRIBUTION", "Package", "look_at_packages", "package_problems", "versions_tested"]

DISTRIBUTION = "graft-peft"
_DEVELOPMENT = "dev"  # the extra that a user of graft has no need of
_BESIDE = ("peft",)  # reads and writes the same adapters
_MODULES = {"pyyaml": "yaml"}  # where the module has another name


@dataclass(frozen=True)
class Package:
    """A package and its versions.

    Attributes:
        name: As in the package index.
        installed: The version that is installed; None where there is none.
        tested: The version that graft's tests ran with; None where they ran without it.
        needed: The versions that graft works with, as `>=5.24`; empty where it states none.
        extra: The extra of graft that needs it, as `quant`; None where graft always does.
        optional: Whether graft works without it.
        fault: Why it cannot be imported; None where it can, is not installed, or is optional.
    """

    name: str
    installed: str | None
    tested: str | None
    needed: str
    extra: str | None = None
    optional: bool = False
    fault: str | None = None


def look_at_packages() -> tuple[Package, ...]:
    """The packages that graft needs, which are imported, and those that it can use.

    There are none where graft itself is not installed: its metadata names them.
    """
    tested = versions_tested()
    found = {}
    for name, needed, extra in _requirements():
        optional = extra is not None or name in _BESIDE
        found[name] = Package(
            name,
            version := _version(name),
            tested.get(canonicalize_name(name)),
            needed,
            extra,
            optional,
            None if optional or version is None else _fault(name),
        )
    return tuple(found.values())


def versions_tested() -> dict[str, str]:
    """Name, in lower case with hyphens, -> version of each package that graft's tests ran with."""
    text = resources.files("graft.environment").joinpath("tested.txt").read_text(encoding="utf-8")
    pins = (line.split("==") for line in text.splitlines())
    return {canonicalize_name(name): version for name, version in pins}


def package_problems(packages: Sequence[Package]) -> list[Problem]:
    """Packages that are missing, too old, or newer than what was tested."""
    if not packages:
        what = f"graft is not installed (no metadata of {DISTRIBUTION}): its needs are not known."
        return [Problem("warning", what, "pip install -e .  # in the folder of pyproject.toml")]
    problems, newer = [], []
    broken: dict[str, dict[str, str]] = {}  # one that is broken breaks those that import it
    for package in packages:
        needed = f"'{package.name}{package.needed}'"
        if package.installed is None:
            if not package.optional:
                what = f"{package.name} is not installed, and graft needs it."
                problems.append(Problem("error", what, f"pip install {needed}"))
        elif not SpecifierSet(package.needed).contains(package.installed, prereleases=True):
            what = f"{package.name} {package.installed} is not {package.needed}, which graft needs."
            severity = "warning" if package.optional else "error"
            problems.append(Problem(severity, what, f"pip install --upgrade {needed}"))
        elif package.fault is not None:
            # Without the local part of the version, such as +cpu, that no package index knows.
            public = Version(package.installed).public
            broken.setdefault(package.fault, {})[package.name] = public
        elif package.tested is not None and _is_newer(package.installed, package.tested):
            newer.append(package)
    for fault, versions in broken.items():
        pins = " ".join(f"{name}=={version}" for name, version in versions.items())
        what = f"{', '.join(versions)} cannot be imported: {fault}."
        problems.append(Problem("error", what, f"pip install --force-reinstall {pins}"))
    if newer:
        names = ", ".join(f"{package.name} {package.installed}" for package in newer)
        pins = " ".join(f"{package.name}=={package.tested}" for package in newer)
        what = f"Newer than what graft was tested with: {names}. If a run fails in them, go back."
        problems.append(Problem("hint", what, f"pip install {pins}"))
    return problems


def _requirements() -> Iterator[tuple[str, str, str | None]]:
    """Name, versions and extra of what graft's metadata asks for, and of what stands beside it."""
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return
    for line in about.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        extra = None
        if requirement.marker is not None:
            extras = (about.get_all("Provides-Extra") or []) + [""]
            serving = [e for e in extras if requirement.marker.evaluate({"extra": e})]
            if not serving or _DEVELOPMENT in serving:
                continue  # for another system, or for development
            extra = None if "" in serving else serving[0]
        yield requirement.name, str(requirement.specifier), extra
    yield from ((name, "", None) for name in _BESIDE)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fault(name: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(_MODULES.get(name, name))
    except Exception as error:  # a package may fail in any way
        return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
    return None


def _is_newer(installed: str, tested: str) -> bool:
    """By the first two numbers: the third is for repairs."""
    return Version(installed).release[:2] > Version(tested).release[:2]
