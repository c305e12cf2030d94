"""Devices that are not here, as their makers state them.

Memory is what torch reports of such a device, a little under what is printed on its box. Rates are
of dense matrix products: fp32 without TF32, as torch multiplies by default; bf16 summed in fp32.
A device that does not compute in bf16 has the rate of fp32 there.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGUE", "Stated"]


@dataclass(frozen=True)
class Stated:
    """What a maker states of a device.

    Attributes:
        memory_gib: As torch reports it.
        fp32_tflops: 1e12 operations a second.
        bf16_tflops: The same in bfloat16.
        bandwidth_gb: 1e9 bytes a second between its processor and its memory.
    """

    memory_gib: float
    fp32_tflops: float
    bf16_tflops: float
    bandwidth_gb: float


CATALOGUE: dict[str, Stated] = {
    "RTX-3060-12GB": Stated(11.76, 12.7, 25.5, 360),
    "RTX-3090-24GB": Stated(23.69, 35.6, 71, 936),
    "RTX-4090-24GB": Stated(23.64, 82.6, 165, 1008),
    "T4-16GB": Stated(14.74, 8.1, 8.1, 320),
    "V100-16GB": Stated(15.77, 15.7, 15.7, 900),
    "L4-24GB": Stated(22.17, 30.3, 121, 300),
    "A10-24GB": Stated(22.06, 31.2, 125, 600),
    "L40S-48GB": Stated(44.39, 91.6, 362, 864),
    "A100-40GB": Stated(39.39, 19.5, 312, 1555),
    "A100-80GB": Stated(79.15, 19.5, 312, 2039),
    "H100-80GB": Stated(79.10, 66.9, 989, 3350),
    "H200-141GB": Stated(139.8, 66.9, 989, 4800),
}
