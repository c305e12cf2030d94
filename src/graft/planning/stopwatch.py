"""How long one operation of a trace takes on a device: it is run there on random numbers.

An operation that would take long or much memory is run with its largest sizes halved until it does
not, and its time scaled by the work that was left out: large products run at one rate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from graft.planning.operation import Operation, TensorSpec

__all__ = ["bytes_of", "random_like", "seconds_of", "synchronize"]

_RUNS = 5  # of one operation, after one that makes the kernels ready
_SECONDS = 0.1  # for all of these; one is made in any case
_MOST_FLOPS = 2e9  # of one run
_MOST_BYTES = 2**27
_LEAST_SIZE = 64  # that is still halved


def seconds_of(operation: Operation, device: str) -> float | None:
    """Seconds of one call; None where it cannot be run by itself."""
    function = _function(operation.name)
    arguments, keywords = operation.arguments, dict(operation.keywords)
    small = _within_limits(operation)
    if small is not None:
        arguments, keywords = small
    try:
        given = tree_map(lambda each: random_like(each, device), (arguments, keywords))
        work = 1.0
        if small is not None:
            work = _work(operation) / _work_of_call(function, given, bool(operation.flops))
        return work * _median(function, given, device)
    except (RuntimeError, TypeError, ValueError, IndexError, ZeroDivisionError):
        return None  # its arguments are not numbers and tensors alone, or did not stand halving


def synchronize(device: str) -> None:
    """Wait until `device` has done what it was told."""
    if device != "cpu":
        torch.accelerator.synchronize()


def random_like(spec: Any, device: str) -> Any:
    """A tensor for a `TensorSpec`; anything else as it is. Integers are 0: they may be indices."""
    if not isinstance(spec, TensorSpec):
        return spec
    last = sum((size - 1) * step for size, step in zip(spec.shape, spec.stride, strict=True))
    count = last + 1 if all(spec.shape) else 0
    if spec.dtype.is_floating_point:
        numbers = torch.rand(count, device=device).to(spec.dtype)
    else:
        numbers = torch.zeros(count, dtype=spec.dtype, device=device)
    return numbers.as_strided(spec.shape, spec.stride)


def bytes_of(values: Any) -> int:
    """Bytes of all tensors in a tree of values."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))


def _function(name: str) -> torch._ops.OpOverload:
    space, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, space), packet), overload)


def _median(function: torch._ops.OpOverload, given: Any, device: str) -> float:
    arguments, keywords = given
    times: list[float] = []
    with torch.no_grad():
        while len(times) <= _RUNS and (len(times) < 2 or sum(times) < _SECONDS):
            if function._schema.is_mutable:  # numbers that are changed again and again overflow
                arguments, keywords = tree_map(_copied, given)
            synchronize(device)
            start = time.perf_counter()
            function(*arguments, **keywords)
            synchronize(device)
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _within_limits(operation: Operation) -> tuple[Any, dict[str, Any]] | None:
    """Smaller arguments for an operation that is too large to be run; None for any other."""
    work = max(operation.flops / _MOST_FLOPS, operation.bytes / _MOST_BYTES)
    if work <= 1:
        return None
    arguments, keywords = operation.arguments, dict(operation.keywords)
    while work > 1:
        specs = [x for x in tree_leaves((arguments, keywords)) if isinstance(x, TensorSpec)]
        largest = max(size for spec in specs for size in spec.shape)
        if largest <= _LEAST_SIZE:
            break
        halve = _halving(largest)
        before = _numbers(specs)
        arguments, keywords = tree_map(halve, (arguments, keywords))
        specs = [x for x in tree_leaves((arguments, keywords)) if isinstance(x, TensorSpec)]
        work *= _numbers(specs) / before
    return arguments, keywords


def _halving(size: int) -> Callable[[Any], Any]:
    """A function that halves `size` wherever it stands, as a dimension or as a number."""
    half = (size + 1) // 2

    def halve(value: Any) -> Any:
        if isinstance(value, TensorSpec):
            shape = tuple(half if each == size else each for each in value.shape)
            return TensorSpec(shape, _dense(shape, value.stride), value.dtype)
        return half if type(value) is int and value == size else value

    return halve


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of `shape` in the order of `stride`, without holes; what was expanded stays so."""
    out, at = [0] * len(shape), 1
    for place in sorted(range(len(shape)), key=lambda i: (stride[i], -i)):
        if stride[place]:
            out[place] = at
            at *= shape[place]
    return tuple(out)


def _numbers(specs: list[TensorSpec]) -> int:
    return sum(torch.Size(spec.shape).numel() for spec in specs)


def _work(operation: Operation) -> int:
    return operation.flops or operation.bytes


def _work_of_call(function: torch._ops.OpOverload, given: Any, in_flops: bool) -> int:
    arguments, keywords = tree_map(_copied, given)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made = function(*arguments, **keywords)
    return counter.get_total_flops() if in_flops else bytes_of((arguments, keywords, made))
