"""Memory in use, now and at the most, as the device itself counts it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

__all__ = ["peak_memory_gib", "reset_peak_memory", "resident_bytes"]

_GIB = 2**30


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak: allocated memory on a GPU, the resident set on a CPU (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        # Not allowed in some containers: the peak is then that of the whole process.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib(device: torch.device) -> float | None:
    """GiB at the peak since the reset; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    if sys.platform == "linux":
        return _status("VmHWM") / _GIB
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _GIB
    return None


def resident_bytes() -> int:
    """Memory that the process holds now; 0 where the system does not tell."""
    return _status("VmRSS") if sys.platform == "linux" else 0


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
