from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from graft.environment.machine import Machine
from graft.environment.speed import Product
from graft.environment.torch_build import Device, Torch, look_at_torch, torch_problems

MACHINE = Machine("a processor", 8, 8, 32.0, 30.0)
CPU = Device("cpu", "a processor", "AVX512", 30.0, 32.0)
GPU = Device("cuda:0", "a GPU", "9.0", 70.0, 80.0)
SEEN = ("a GPU, driver 550.1",)
FOUND = Torch("2.13.0+cpu", "CPU", 8, (CPU,), ())
CUDA = replace(FOUND, version="2.13.0+cu128", build="CUDA 12.8", gpus=SEEN)


def test_the_torch_that_is_here():
    found = look_at_torch(MACHINE)
    assert found.version == torch.__version__
    assert found.threads == torch.get_num_threads()
    assert found.build is not None
    if torch.version.cuda:
        assert found.build == f"CUDA {torch.version.cuda}"
    cpu, *accelerators = found.devices
    assert (cpu.name, cpu.model, cpu.total_gib) == ("cpu", MACHINE.cpu, MACHINE.memory_gib)
    assert len(cpu.products) == 4
    assert len(accelerators) == torch.cuda.device_count() + torch.backends.mps.is_available()


def test_a_gpu_that_the_driver_sees(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'NVIDIA A, 550.54\\nNVIDIA B, 550.54\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert look_at_torch(MACHINE).gpus == ("NVIDIA A, driver 550.54", "NVIDIA B, driver 550.54")


def test_a_driver_that_is_gone(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho Failed to initialize NVML\nexit 18\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = look_at_torch(MACHINE)
    assert (found.gpus, found.driver_fault) == ((), "Failed to initialize NVML")
    (problem,) = torch_problems(found, found.threads, {})
    assert problem.severity == "warning"
    assert "Failed to initialize NVML" in problem.what


def test_a_gpu_that_another_program_has(monkeypatch):
    def busy(index: int) -> None:
        raise RuntimeError("CUDA error: all devices are busy\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", busy)
    found = look_at_torch(MACHINE)
    assert [device.name for device in found.devices] == ["cpu"]
    assert found.complaint == "CUDA error: all devices are busy"


@pytest.mark.parametrize(
    ("found", "environ", "said", "cure"),
    [
        (replace(FOUND, gpus=SEEN), {}, "built for the CPU", "pip install torch==2.13.0"),
        (CUDA, {"CUDA_VISIBLE_DEVICES": ""}, "hides it", "unset CUDA_VISIBLE_DEVICES"),
        (CUDA, {"CUDA_VISIBLE_DEVICES": "-1"}, "hides it", "unset CUDA_VISIBLE_DEVICES"),
        (
            replace(CUDA, complaint="The driver is too old."),
            {"CUDA_VISIBLE_DEVICES": "0"},
            "It says: The driver is too old.",
            "update the driver",
        ),
        (replace(FOUND, threads=9), {}, "9 threads", "export OMP_NUM_THREADS=8"),
    ],
)
def test_what_is_wrong_with_torch(found, environ, said, cure):
    (problem,) = torch_problems(found, 8, environ, "linux")
    assert problem.severity == "warning"
    assert said in problem.what
    assert cure in problem.cure


def test_where_pypi_has_no_wheel_for_cuda():
    (problem,) = torch_problems(replace(FOUND, gpus=SEEN), 8, {}, "win32")
    assert "https://pytorch.org/get-started" in problem.cure


def test_a_gpu_that_others_fill():
    full = replace(GPU, free_gib=3.0)
    (problem,) = torch_problems(replace(CUDA, devices=(CPU, full)), 8, {})
    assert problem.severity == "hint"
    assert "3.0 of 80.0 GiB" in problem.what


def test_a_gpu_that_torch_is_not_built_for():
    products = tuple(Product(name, None, "not supported") for name in ("fp32", "bf16"))
    found = replace(CUDA, devices=(CPU, replace(GPU, products=products)))
    (problem,) = torch_problems(found, 8, {})
    assert problem.severity == "warning"
    assert "a GPU (capability 9.0)" in problem.what


@pytest.mark.parametrize("found", [FOUND, replace(CUDA, devices=(CPU, GPU))])
def test_nothing_is_wrong_with_torch(found):
    assert torch_problems(found, 8, {}) == []


def test_a_torch_that_cannot_be_imported_is_the_packages_problem():
    assert torch_problems(Torch(None, None, 0, (), SEEN), 8, {}) == []
