"""What a step computes, as the operations of torch that it calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Operation", "TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Operation:
    """Calls of one operation with the same arguments.

    Attributes:
        name: Such as "aten.addmm.default".
        arguments: In order: a `TensorSpec` for a tensor, tuples for lists, the rest as it is.
        keywords: The same, by name.
        count: Calls in the step.
        flops: Of one call, as `torch.utils.flop_counter` counts them; 0 where it counts none.
        bytes: Read and written by one call; 0 for one that makes a view.
    """

    name: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    count: int
    flops: int
    bytes: int
