"""torch, what it was built for, and the devices it can use."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graft.environment.machine import Machine
from graft.environment.problem import Problem
from graft.environment.speed import Product, measure_products

__all__ = ["Device", "Torch", "look_at_torch", "torch_problems"]

_GIB = 2**30
_CHOOSER = "https://pytorch.org/get-started/locally"  # gives the command for a system and a build


@dataclass(frozen=True)
class Device:
    """A device that torch can use.

    Attributes:
        name: As torch calls it: `cpu`, `cuda:0`, `mps`.
        model: What it is.
        capability: The instructions that torch uses of it: CUDA's compute capability, or the
            vector instructions of a CPU; None where torch does not say.
        free_gib: Free memory.
        total_gib: Memory.
        products: Measured speed of the number formats, of the CPU and the first accelerator.
    """

    name: str
    model: str
    capability: str | None
    free_gib: float
    total_gib: float
    products: tuple[Product, ...] = ()


@dataclass(frozen=True)
class Torch:
    """The torch that is installed.

    Attributes:
        version: Its version; None where it cannot be imported.
        build: `CPU`, `CUDA 12.8`, `ROCm 6.4`, `MPS`, `XPU`; None where it cannot be imported.
        threads: Threads of an operation on the CPU.
        devices: What it can use, the CPU first.
        gpus: NVIDIA GPUs that the driver's own tool sees, with the driver's version.
        complaint: What it says of a GPU that it cannot use.
        driver_fault: What the driver's own tool says where it fails.
    """

    version: str | None
    build: str | None
    threads: int
    devices: tuple[Device, ...]
    gpus: tuple[str, ...]
    complaint: str | None = None
    driver_fault: str | None = None


def look_at_torch(machine: Machine) -> Torch:
    """Import torch, find its devices and measure them."""
    gpus, fault = _gpus_of_the_driver()
    try:
        import torch
    except Exception:  # a problem of the package
        return Torch(None, None, 0, (), gpus, None, fault)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            accelerators, complaint = _accelerators(), None
        except RuntimeError as error:  # a GPU that another program has for itself
            accelerators, complaint = [], str(error)
    complaint = complaint or (str(said[0].message) if said else None)
    cpu = Device(
        "cpu",
        machine.cpu,
        torch.backends.cpu.get_cpu_capability(),
        machine.free_memory_gib,
        machine.memory_gib,
        measure_products(torch.device("cpu")),
    )
    return Torch(
        str(torch.__version__),
        _build(),
        torch.get_num_threads(),
        (cpu, *accelerators),
        gpus,
        complaint and complaint.partition("\n")[0],
        fault,
    )


def torch_problems(
    found: Torch, usable_cores: int, environ: Mapping[str, str], platform: str = sys.platform
) -> list[Problem]:
    """A torch that cannot use the GPU that is there, and what slows it."""
    problems = []
    usable = any(device.name.startswith("cuda") for device in found.devices)
    if found.version is not None and found.gpus and not usable:
        problems.append(_unused_gpu(found, environ.get("CUDA_VISIBLE_DEVICES"), platform))
    if found.driver_fault:
        cure = "sudo reboot  # after an update of the driver; else install it again"
        problems.append(Problem("warning", f"nvidia-smi fails: {found.driver_fault}", cure))
    if found.threads > usable_cores:
        what = f"torch takes {found.threads} threads, and {usable_cores} cores are usable."
        problems.append(Problem("warning", what, f"export OMP_NUM_THREADS={usable_cores}"))
    return problems + [p for device in found.devices for p in _device_problems(device, found)]


def _device_problems(device: Device, torch: Torch) -> Iterator[Problem]:
    """A GPU that the build has no kernels for, or of which others hold most of the memory."""
    if any(product.verdict == "not supported" for product in device.products[:1]):
        capability = f" (capability {device.capability})" if device.capability else ""
        what = f"torch {torch.version} for {torch.build} cannot multiply on {device.name}: "
        what += f"it is not built for {device.model}{capability}."
        yield Problem("warning", what, f"install the build for it from {_CHOOSER}")
    if device.name.startswith("cuda") and device.free_gib < device.total_gib / 2:
        what = f"{device.name} has {device.free_gib:.1f} of {device.total_gib:.1f} GiB free: other "
        yield Problem("hint", f"{what}programs hold the rest.", "nvidia-smi  # shows which")


def _unused_gpu(found: Torch, visible: str | None, platform: str) -> Problem:
    there = f"There is a GPU ({found.gpus[0]})"
    if found.build == "CPU":
        # PyPI's wheels for Linux are those for CUDA; a local version such as +cpu counts as the
        # same to pip, so that the old one has to go first.
        version = (found.version or "").partition("+")[0]
        cure = f"pip uninstall -y torch && pip install torch=={version}"
        if platform != "linux":
            cure = f"pip uninstall -y torch, then the command for CUDA from {_CHOOSER}"
        return Problem("warning", f"{there}, but torch {found.version} is built for the CPU.", cure)
    if visible is not None and visible.strip() in {"", "-1"}:
        what = f"{there}, but CUDA_VISIBLE_DEVICES={visible} hides it."
        return Problem("warning", what, "unset CUDA_VISIBLE_DEVICES")
    why = f" It says: {found.complaint}" if found.complaint else ""
    what = f"{there}, but torch {found.version} for {found.build} cannot use it.{why}"
    return Problem("warning", what, f"update the driver, or take an older CUDA from {_CHOOSER}")


def _build() -> str:
    import torch

    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if getattr(torch.version, "xpu", None):  # older versions do not have it
        return "XPU"
    return "MPS" if torch.backends.mps.is_built() else "CPU"


def _accelerators() -> list[Device]:
    """Every GPU that torch can use; the first is measured."""
    import torch

    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{properties.major}.{properties.minor}"
        devices.append(_gpu(f"cuda:{index}", properties.name, capability, free, total))
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
        devices.append(_gpu("mps", "Apple GPU", None, free, total))
    return devices


def _gpu(name: str, model: str, capability: str | None, free: int, total: int) -> Device:
    import torch

    first = name in {"cuda:0", "mps"}
    products = measure_products(torch.device(name)) if first else ()
    return Device(name, model, capability, free / _GIB, total / _GIB, products)


def _gpus_of_the_driver() -> tuple[tuple[str, ...], str | None]:
    """The GPUs that nvidia-smi names, or what it says where it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), None
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    if done.returncode:
        told = f"{done.stdout}\n{done.stderr}".strip() or f"exit code {done.returncode}"
        return (), told.partition("\n")[0]
    lines = [line.partition(",") for line in done.stdout.splitlines() if line.strip()]
    return tuple(f"{name.strip()}, driver {driver.strip()}" for name, _, driver in lines), None
