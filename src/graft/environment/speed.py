"""What a device makes of each number format, measured by a small matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Product", "measure_products"]

_REPETITIONS = 30
_SECONDS = 0.15  # for one format; its first repetition may take longer


@dataclass(frozen=True)
class Product:
    """A product of two square matrices in one number format.

    Attributes:
        dtype: `fp32`, `bf16`, `fp16` or `int8`.
        gflops: 1e9 operations a second, the best of a few products, as other programs only slow
            them; None where it failed.
        verdict: `reference` for fp32; else `fast` (a quarter over fp32, or more), `as fp32`,
            `works, slower than fp32`, `not supported`, or `not measured: out of memory`.
    """

    dtype: str
    gflops: float | None
    verdict: str


def measure_products(device: torch.device) -> tuple[Product, ...]:
    """Multiply matrices on `device` in fp32, bf16, fp16 and int8; under two seconds in all."""
    import torch

    size = 512 if device.type == "cpu" else 4096
    generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay what they were
    numbers = torch.randint(-127, 128, (2, size, size), generator=generator, dtype=torch.int8)
    dtypes = {
        "fp32": torch.float32,  # first, the others are held against it
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "int8": torch.int8,
    }
    rates: dict[str, float | None] = {}
    for name, dtype in dtypes.items():
        try:
            rates[name] = _gflops(numbers, dtype, device)
        except torch.OutOfMemoryError:
            return tuple(Product(name, None, "not measured: out of memory") for name in dtypes)
        except RuntimeError:  # also NotImplementedError: there is no such kernel
            rates[name] = None
    return tuple(Product(name, rate, _verdict(name, rates)) for name, rate in rates.items())


def _verdict(name: str, rates: Mapping[str, float | None]) -> str:
    rate, reference = rates[name], rates["fp32"]
    if rate is None:
        return "not supported"
    if name == "fp32":
        return "reference"
    if reference is None or rate >= 1.25 * reference:
        return "fast"
    return "as fp32" if rate >= 0.8 * reference else "works, slower than fp32"


def _gflops(numbers: Tensor, dtype: torch.dtype, device: torch.device) -> float:
    """Of `x @ y.T`; int8 is summed in int32, as quantised layers do."""
    import torch

    x, y = numbers.to(device, dtype)
    multiply = torch._int_mm if dtype == torch.int8 else torch.mm
    synchronize = torch.accelerator.synchronize if device.type != "cpu" else lambda _: None

    def run() -> None:
        multiply(x, y.T)
        synchronize(device)

    return 2 * numbers.shape[1] ** 3 / _seconds(run) / 1e9


def _seconds(run: Callable[[], None]) -> float:
    """The shortest of a few runs, after one that makes the kernels ready."""
    run()
    times: list[float] = []
    while len(times) < _REPETITIONS and sum(times) < _SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
