from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from graft.cli.doctor import _print
from graft.environment import (
    Device,
    Environment,
    Folder,
    Hub,
    Machine,
    Package,
    Problem,
    Product,
    Python,
    Torch,
)

CPU = Device(
    "cpu",
    "a processor",
    "AVX2",
    7.5,
    8.0,
    (
        Product("fp32", 50.4, "reference"),
        Product("bf16", 12.3, "works, slower than fp32"),
        Product("int8", None, "not supported"),
    ),
)
FOUND = Environment(
    graft="0.1.0",
    python=Python("3.11.9", "/env/bin/python", "/env", "an operating system"),
    machine=Machine("a processor", 8, 2, 8.0, 7.5),
    torch=Torch("2.13.0", "CUDA 12.8", 2, (CPU,), ("a GPU, driver 550",)),
    packages=(
        Package("torch", "2.13.0", "2.13.0", ">=2.6"),
        Package("wandb", None, None, ">=0.19", "track", True),
        Package("swanlab", None, None, ">=0.5", "track", True),
    ),
    folders=(Folder("cache of hub", "/cache", "HF_HOME", True, 20.0, 100.0, 3.21),),
    settings={"HF_ENDPOINT": "https://mirror", "HF_HOME": None, "CUDA_VISIBLE_DEVICES": ""},
    plain_names="hf",
    hubs=(
        Hub("Hugging Face", "https://mirror", True, 0.123),
        Hub("ModelScope", "https://modelscope.cn", None, why="a reason"),
    ),
    problems=(Problem("warning", "Something is wrong.", "mend it"),),
)


@pytest.fixture(autouse=True)
def _own_places(monkeypatch, tmp_path):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))


def test_every_fact_is_printed(capsys):
    _print(FOUND)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "graft 0.1.0",
        "Python 3.11.9, /env/bin/python",
        "processor a processor, 8 cores (2 usable)",
        "memory 7.5 of 8.0 GiB free",
        "version 2.13.0, built for CUDA 12.8, 2 threads",
        "GPU a GPU, driver 550",
        "cpu a processor, AVX2, 7.5 of 8.0 GiB free",
        "fp32 50 GFLOP/s",
        "bf16 12 GFLOP/s, works, slower than fp32",
        "int8 not supported",
        "torch 2.13.0, tested 2.13.0",
        "not installed wandb, swanlab, of graft-peft[track]",
        "cache of hub /cache, 3.2 GiB in it, 20.0 of 100.0 GiB free",
        "HF_ENDPOINT https://mirror",
        "CUDA_VISIBLE_DEVICES empty",
        "Hugging Face https://mirror answers in 0.12 s",
        "ModelScope not asked: a reason",
        "ORG/NAME alone is a repository on Hugging Face",
        "warning: Something is wrong.",
        "mend it",
    ):
        assert line in lines
    assert not any(line.startswith("HF_HOME") for line in lines)


def test_json_is_the_same(graft, capsys):
    assert graft("doctor", "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    told = json.loads(out)
    assert told["works"] is True
    assert told.keys() == asdict(FOUND).keys() | {"works"}
    assert told["torch"].keys() == asdict(FOUND.torch).keys()


def test_a_package_that_is_too_old_ends_with_1(graft, capsys, tmp_path, monkeypatch):
    about = tmp_path / "accelerate-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: accelerate\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert graft("doctor") == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "error: accelerate 0.1 is not >=" in out


def test_offline_ends_with_0_and_nothing_is_broken_in_a_pipe(graft, capsys):
    assert graft("doctor") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Hugging Face        not asked: HF_HUB_OFFLINE is set\n" in out
    assert not any(line.endswith(" ") for line in out.splitlines())
