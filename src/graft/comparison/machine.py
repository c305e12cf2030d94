"""Where a comparison was made: versions and machine; and the memory that its runs held."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import psutil
import torch

from graft.training.report import Callback

__all__ = ["MemoryWatch", "installed_versions", "this_system"]

_PACKAGES = (
    "graft-peft",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "bitsandbytes",
)


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
    """Of python and the libraries that are there, by name."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def this_system() -> dict[str, str]:
    """The machine, by PEFT's names."""
    accelerator = "N/A"
    if torch.cuda.is_available():
        accelerator = torch.cuda.get_device_name()
    return {
        "system": platform.system(),
        "release": platform.release(),
        "version": platform.version(),
        "machine": platform.machine(),
        "processor": platform.processor(),
        "accelerator": accelerator,
    }
