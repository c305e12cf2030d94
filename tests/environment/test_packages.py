from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from graft.environment.packages import (
    Package,
    look_at_packages,
    package_problems,
    versions_tested,
)

ROOT = Path(__file__).parents[2]


def made(**changes: object) -> Package:
    usual = {"name": "accelerate", "installed": "1.15.0", "tested": "1.15.0", "needed": ">=1.10"}
    return Package(**{**usual, **changes})  # pyright: ignore[reportArgumentType]


def test_the_tested_set_is_the_repositorys():
    """Mend it with: cp constraints.txt src/graft/environment/tested.txt"""
    installed = ROOT / "src" / "graft" / "environment" / "tested.txt"
    assert installed.read_bytes() == (ROOT / "constraints.txt").read_bytes()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "environment/tested.txt" in project["tool"]["setuptools"]["package-data"]["graft"]


def test_every_requirement_is_looked_at():
    found = {package.name: package for package in look_at_packages()}
    for line in metadata.requires("graft-peft") or []:
        requirement = Requirement(line)
        if requirement.marker is None:
            package = found[requirement.name]
            assert package.installed == metadata.version(requirement.name)
            assert package.needed == str(requirement.specifier)
            assert (package.extra, package.optional) == (None, False)
    assert found["bitsandbytes"].extra == "quant"
    assert found["bitsandbytes"].optional
    assert found["peft"].optional
    assert "pytest" not in found


def test_the_tested_set_is_what_graft_needs():
    """Lower bounds and tested versions are kept in two places; they must not part."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = versions_tested()
    for line in project["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)])


@pytest.mark.parametrize(
    ("package", "severity", "cure"),
    [
        (made(installed=None), "error", "pip install 'accelerate>=1.10'"),
        (made(installed="1.9.3"), "error", "pip install --upgrade 'accelerate>=1.10'"),
        (
            made(installed="1.16.0", fault="ImportError: no symbol"),
            "error",
            "pip install --force-reinstall accelerate==1.16.0",
        ),
        (made(installed="1.16.0"), "hint", "pip install accelerate==1.15.0"),
        (made(installed="2.0"), "hint", "pip install accelerate==1.15.0"),
        (
            made(installed="1.9", optional=True, extra="quant"),
            "warning",
            "pip install --upgrade 'accelerate>=1.10'",
        ),
    ],
)
def test_what_is_wrong_with_a_version(package, severity, cure):
    (problem,) = package_problems([package])
    assert (problem.severity, problem.cure) == (severity, cure)
    assert "accelerate" in problem.what
    assert package.fault or (package.installed or "not installed") in problem.what


@pytest.mark.parametrize(
    "package",
    [
        made(),
        made(installed="1.15.0+cpu"),
        made(installed="1.15.7"),
        made(installed="1.10"),
        made(installed="1.16.0", tested=None),
        made(installed="1.11.dev0"),
        made(installed=None, optional=True),
        made(installed="0.1", needed="", optional=True),
    ],
)
def test_nothing_is_wrong_with_a_version(package):
    assert package_problems([package]) == []


def test_all_that_is_newer_is_one_hint():
    packages = [made(name=name, installed="2.0") for name in ("accelerate", "peft")]
    (problem,) = package_problems(packages)
    assert problem.cure == "pip install accelerate==1.15.0 peft==1.15.0"


def test_what_breaks_others_is_one_error():
    fault = "ImportError: no symbol"
    packages = [made(name="torch", installed="2.13.0+cpu", fault=fault), made(fault=fault)]
    (problem,) = package_problems(packages)
    assert problem.what == "torch, accelerate cannot be imported: ImportError: no symbol."
    assert problem.cure == "pip install --force-reinstall torch==2.13.0 accelerate==1.15.0"


def test_packages_that_are_broken(tmp_path):
    """Whatever they are, the doctor goes on and names them."""
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so is gone')")
    (tmp_path / "huggingface_hub.py").write_text("raise RuntimeError('made for another.')")
    code = (
        "from graft.environment import examine\n"
        "found = examine(timeout=0.0)\n"
        "print(*(p.what for p in found.problems if p.severity == 'error'), sep='\\n')\n"
        "print(found.torch.version, [hub.reachable for hub in found.hubs], found.works)"
    )
    environ = {
        "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}",
        "MODELSCOPE_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True
    )
    assert done.stderr == ""
    *errors, facts = done.stdout.splitlines()
    assert errors[0].startswith("torch")
    assert errors[0].endswith("cannot be imported: OSError: libcudart.so is gone.")
    (hub,) = (error for error in errors if "huggingface_hub" in error)
    assert hub.endswith("cannot be imported: RuntimeError: made for another.")
    assert facts == "None [None, None] False"


def test_graft_that_is_not_installed():
    (problem,) = package_problems([])
    assert problem.severity == "warning"
    assert "pip install -e ." in problem.cure
