"""Where a comparison was made: versions and machine; and the memory that its runs held."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import psutil
import torch

from graft.training.report import Callback
from graft.training.summary import versions

__all__ = ["MemoryWatch", "installed_versions", "this_system"]

_BESIDE = ("datasets", "peft", "bitsandbytes")  # which PEFT's own results name too


class MemoryWatch(Callback):
    """Notes the memory in use after each step: a GPU's reserved, else that of the process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._process = psutil.Process()
        self._seen: list[int] = []

    def on_step(self, step: int) -> None:
        on_gpu = self.device.type == "cuda"
        reserved = torch.cuda.memory_reserved(self.device) if on_gpu else None
        self._seen.append(self._process.memory_info().rss if reserved is None else reserved)

    @property
    def average(self) -> int | None:
        """Bytes, the mean over the steps."""
        return int(np.mean(self._seen)) if self._seen else None

    @property
    def high(self) -> int | None:
        """Bytes, the 99th percentile over the steps."""
        return int(np.percentile(self._seen, 99)) if self._seen else None


def installed_versions() -> dict[str, str]:
    """Of Python and of the libraries that are there, by name."""
    found = versions()
    for name in _BESIDE:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def this_system() -> dict[str, str]:
    """The machine, by PEFT's names."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "version": platform.version(),
        "machine": platform.machine(),
        "processor": platform.processor(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "N/A",
    }
