"""Where a run would run: how much memory there is, and what it takes beside the tensors of a plan.

A plan counts tensors. A device needs more: what its allocator rounds up, holes between blocks, the
workspace of its matrix library, on a GPU a context. That is the margin: stated for a device that
was not measured, and measured by the first real runs on one that is here (`calibration`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from graft.environment.machine import look_at_machine
from graft.errors import ConfigError, did_you_mean
from graft.planning.catalogue import CATALOGUE

__all__ = ["Device", "Kind", "Margin", "known_device", "parse_bytes", "this_device"]

Kind = Literal["cpu", "cuda", "mps"]

_GIB = 2**30
_UNITS = {"": 1} | {
    unit.lower(): base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in ((letter, 1024), (f"{letter}iB", 1024), (f"{letter}B", 1000))
}


@dataclass(frozen=True)
class Margin:
    """What a device takes beside the tensors.

    Attributes:
        bytes: Whatever the size of the run.
        share: Of the tensors' peak.
        how: `stated`, or `measured on DATE, N runs`.
    """

    bytes: int
    share: float
    how: str

    def over(self, peak: int) -> int:
        """Bytes beside tensors of `peak` bytes."""
        return self.bytes + round(self.share * peak)


# A process on a CPU: glibc keeps up to 64 MiB of what was freed, and holes of freed blocks below
# 32 MiB between others: 30 to 160 MiB in 15 runs of 70 MiB to 1.3 GiB. What the libraries take is
# taken already, as free memory is counted beside this process.
_CPU = Margin(160 * 2**20, 0.03, "stated")
# cuBLAS takes 32 MiB on Hopper and 8 MiB before it; blocks are rounded to 512 bytes, large ones to
# 2 MiB segments, and what is free between them is too small for what comes.
_CUDA = Margin(32 * 2**20, 0.05, "stated")
_CONTEXT = 480 * 2**20  # CUDA's own, of a process with torch's kernels
_MPS = Margin(256 * 2**20, 0.05, "stated")


@dataclass(frozen=True)
class Device:
    """A device that a run would use.

    Attributes:
        name: As it calls itself, or as it was asked for.
        kind: `cpu`, `cuda` or `mps`.
        total_bytes: Its memory.
        free_bytes: What of it can be taken now; all of it where the device is not here.
        here: Whether it is this machine's.
        margin: What it takes beside tensors.
        rates: FLOP/s by dtype as its maker states them; none for a device that can be measured.
        bandwidth: Bytes/s as its maker states it; 0 where nothing is stated.
    """

    name: str
    kind: Kind
    total_bytes: int
    free_bytes: int
    here: bool
    margin: Margin
    rates: Mapping[torch.dtype, float] = field(default_factory=dict)
    bandwidth: float = 0.0

    def needs(self, peak: int) -> int:
        """Bytes of the device that tensors of `peak` bytes take."""
        return peak + self.margin.over(peak)

    def fits(self, peak: int) -> bool:
        """Whether tensors of `peak` bytes fit in what is free."""
        return self.needs(peak) <= self.free_bytes


def this_device() -> Device:
    """The device that training on this machine uses, with its margin as far as it was measured."""
    from graft.planning.calibration import calibrated

    return calibrated(_accelerator() or _processor())


def known_device(name: str) -> Device:
    """A device by name (`A100-80GB`, `RTX 4090`), or one that has so much memory (`24GiB`).

    Raises:
        ConfigError: Not enough of a known name to tell which, nor a size.
    """
    found = _named(_letters(name))
    if len(found) == 1:
        return _stated(found[0])
    if not found and re.match(r"\s*[\d.]", name):
        size = parse_bytes(name)
        margin = Margin(_CUDA.bytes + _CONTEXT, _CUDA.share, "stated")
        return Device(name.strip(), "cuda", size, size, False, margin)
    near = f" Did you mean {' or '.join(found)}?" if found else did_you_mean(name, CATALOGUE)
    what = "may be several devices" if found else "is no known device"
    raise ConfigError(f"{name!r} {what}; give the name of one, or its memory (24GiB).{near}")


def parse_bytes(text: str) -> int:
    """Bytes of a size: `24GiB` and `24g` are 24 * 2**30, `24GB` is 24e9, a bare number bytes.

    Raises:
        ConfigError: Not a size, or none at all.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _UNITS or not float(found[1]):
        raise ConfigError(f"{text!r} is no size of memory; give one such as 24GiB, 24GB or 8g.")
    return round(float(found[1]) * _UNITS[found[2]])


def _stated(name: str) -> Device:
    stated = CATALOGUE[name]
    size = round(stated.memory_gib * _GIB)
    return Device(
        name,
        "cuda",
        size,
        size,
        here=False,
        margin=Margin(_CUDA.bytes + _CONTEXT, _CUDA.share, "stated"),
        rates={
            torch.float32: stated.fp32_tflops * 1e12,
            torch.bfloat16: stated.bf16_tflops * 1e12,
        },
        bandwidth=stated.bandwidth_gb * 1e9,
    )


def _accelerator() -> Device | None:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()  # beside this process's own context
        return Device(torch.cuda.get_device_name(), "cuda", total, free, True, _CUDA)
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
        return Device("Apple GPU", "mps", total, free, True, _MPS)
    return None


def _processor() -> Device:
    machine = look_at_machine()
    total, free = round(machine.memory_gib * _GIB), round(machine.free_memory_gib * _GIB)
    return Device(f"{machine.cpu}, {machine.usable_cores} cores", "cpu", total, free, True, _CPU)


def _named(wanted: str) -> list[str]:
    """The devices that `wanted` may be: those of just that model, else those that have it in it."""
    models = {known: _letters(known.rpartition("-")[0]) for known in CATALOGUE}
    whole = [known for known in CATALOGUE if wanted in (models[known], _letters(known))]
    return whole or [known for known, model in models.items() if wanted and wanted in model]


def _letters(name: str) -> str:
    """What of a name tells devices apart."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"nvidia|geforce|tesla", "", plain)
