"""What is alive while a step runs, and what it calls: a dispatch mode that counts storages.

Numbers are fake where they are real numbers, and real where they are ids, labels, masks and
positions: code that counts and looks up runs as it does in training.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from graft.planning.operation import Operation, TensorSpec
from graft.planning.skeleton import Layer

__all__ = ["Event", "Phase", "Recorder", "Stored"]

_SET = torch.ops.aten.set_.source_Storage_storage_offset
_WRAPPERS = {"_fn", "inner"}  # of torch's around a dispatch mode
_DEVICE = torch.ops.prim.device.default
_ADD = torch.ops.aten.add.Tensor
_GROUPED = torch.ops.aten._grouped_mm.default  # the experts of a mixture
# By which the optimizer makes its state, in the first step alone.
_OF_A_FIRST_STEP = {torch.ops.aten.zeros_like.default, torch.ops.aten.lift_fresh.default}


@dataclass(frozen=True)
class Phase:
    """A part of a step.

    Attributes:
        name: "forward", "loss", "backward", "recomputation" or "optimizer".
        layer: The layer at work, if one is.
        batch: Which forward pass of the step, from 0.
    """

    name: str
    layer: Layer | None = None
    batch: int = 0


@dataclass(eq=False, slots=True)
class Stored:
    """A storage.

    Attributes:
        bytes: As the allocator hands them out.
        kind: One of `memory.KINDS`; "" until it is known.
        born: The phase in which it was made; None: before the step.
        layer: The layer that it belongs to, if it does to one.
        logits: Whether it is as wide as the vocabulary.
    """

    bytes: int
    kind: str
    born: Phase | None
    layer: Layer | None = None
    logits: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """A storage comes to life (+1) or ends (-1).

    Attributes:
        stored: The storage.
        change: +1 or -1.
        phase: Index of the phase in `Recorder.phases`.
        settles: Whether what ends right after it has ended before: a sum in place.
    """

    stored: Stored
    change: int
    phase: int
    settles: bool = False


class Recorder(TorchDispatchMode):
    """Counts what runs inside it.

    Args:
        fake: The mode of the fake tensors.
        vocabulary: Width of a language model's logits; 0 for another one.
        rounding: Memory is handed out in multiples of so many bytes.

    Attributes:
        phases: The parts of the step in order; a part may come again.
        events: What happened, in order.
    """

    def __init__(self, fake: FakeTensorMode, vocabulary: int, rounding: int = 1) -> None:
        super().__init__()
        self.fake = fake
        self.vocabulary = vocabulary
        self.rounding = rounding
        self.phases: list[Phase] = []
        self.events: list[Event] = []
        self.kind = ""  # of what is made now
        self._coming: Phase | None = None
        self._layer: Layer | None = None  # whose parameters the optimizer is at
        self._alive: dict[int, tuple[Stored, Any]] = {}
        self._known: list[Stored] = []
        self._calls: Counter[tuple[Any, ...]] = Counter()
        self._costs: dict[tuple[Any, ...], tuple[int, int]] = {}

    # --- phases ---------------------------------------------------------------------------

    def enter(self, phase: Phase) -> None:
        """What follows is part of `phase`."""
        self._coming = None
        if not self.phases or self.phases[-1] != phase:
            self.phases.append(phase)

    def enter_soon(self, phase: Phase) -> None:
        """What is called from now on is part of `phase`; what ends before is not yet."""
        self._coming = phase

    @property
    def phase(self) -> Phase:
        return self.phases[-1]

    @contextmanager
    def making(self, kind: str) -> Iterator[None]:
        """What is made inside the block is of `kind`."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    # --- storages -------------------------------------------------------------------------

    def hold(
        self, tensor: Tensor, kind: str, layer: Layer | None = None, size: int | None = None
    ) -> None:
        """`tensor` is there before the step; `size` are its bytes, where they are not its own."""
        size = self._size(tensor) if size is None else size
        self._watch(tensor, Stored(size, kind, None, layer))

    def held(self) -> Iterator[Stored]:
        """What was there before the step."""
        return (own for own in self._known if own.born is None)

    def is_of(self, tensor: Tensor, kind: str, layer: Layer | None) -> None:
        """`tensor`, which was made in the step, is of `kind`."""
        stored = self._stored(tensor)
        if stored is not None:
            stored.kind, stored.layer = kind, layer

    def was_there(self, tensor: Tensor, kind: str, layer: Layer | None) -> None:
        """`tensor`, which was made in this step, is there before all others."""
        stored = self._stored(tensor)
        if stored is not None:
            stored.kind, stored.layer, stored.born = kind, layer, None

    def _stored(self, tensor: Tensor) -> Stored | None:
        found = self._alive.get(tensor.untyped_storage()._cdata)
        return None if found is None else found[0]

    def _size(self, tensor: Tensor) -> int:
        return -(-tensor.untyped_storage().nbytes() // self.rounding) * self.rounding

    def _watch(self, tensor: Tensor, stored: Stored, settles: bool = False) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return

        def ended(_: Any) -> None:
            del self._alive[key]
            self.events.append(Event(stored, -1, max(len(self.phases) - 1, 0)))

        self._alive[key] = stored, weakref.ref(storage, ended)
        self._known.append(stored)
        if stored.born is not None:
            self.events.append(Event(stored, 1, len(self.phases) - 1, settles))

    # --- calls ----------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._coming is not None:
            self.enter(self._coming)
        if func is _DEVICE:  # a question, asked of a fake tensor alone
            return args[0].fake_device
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        out = self._run(func, types, args, kwargs, given)
        made = list(_tensors(out))
        layer = self.phase.layer
        if self.phase.name == "optimizer":
            owners = [own for own in map(self._stored, given) if own is not None]
            self._layer = layer = owners[0].layer if owners else self._layer
        settles = func is _ADD and _is_sum_of_gradients(given, sys._getframe(1))
        for tensor in made:
            wide = tensor.is_floating_point() and tensor.shape[-1:] == (self.vocabulary,)
            stored = Stored(self._size(tensor), self.kind, self.phase, layer, wide)
            self._watch(tensor, stored, settles)
        if not (self.phase.name == "optimizer" and func in _OF_A_FIRST_STEP):
            self._count(func, args, kwargs, given, made, out, layer)
        return out

    def _run(self, func: Any, types: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        # The cache of fake results would keep a storage that is an argument.
        self.fake.cache_enabled = func is not _SET
        if func is _GROUPED and given[0].dtype is not torch.bfloat16:
            # Without numbers torch knows it of bfloat16 alone.
            args, kwargs = tree_map(_in_bfloat16, (args, kwargs))
            return func(*args, **kwargs).to(given[0].dtype)
        if any(isinstance(tensor, FakeTensor) for tensor in given):
            return self.fake.__torch_dispatch__(func, types, args, kwargs)
        dtype = kwargs.get("dtype")
        if not given and "dtype" in kwargs and (dtype is None or dtype.is_floating_point):
            dtype = dtype or torch.get_default_dtype()
            return self.fake.__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs)

    def _count(
        self, func: Any, args: Any, kwargs: Any, given: Any, made: Any, out: Any, layer: Any
    ) -> None:
        key = (func, _spec(args), tuple((name, _spec(value)) for name, value in kwargs.items()))
        self._calls[(*key, layer)] += 1
        if key not in self._costs:
            formula = flop_registry.get(func._overloadpacket)
            flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=out))
            moved = 0 if func.is_view else sum(t.numel() * t.element_size() for t in given + made)
            self._costs[key] = flops, moved

    def operations(self) -> tuple[Operation, ...]:
        """What was called, layers counted as often as they stand for others."""
        total: Counter[tuple[Any, ...]] = Counter()
        for (*key, layer), count in self._calls.items():
            total[tuple(key)] += count * (1 if layer is None else layer.times)
        return tuple(
            Operation(str(key[0]), key[1], key[2], count, *self._costs[key])
            for key, count in total.items()
        )


def _is_sum_of_gradients(given: list[Tensor], caller: FrameType | None) -> bool:
    """Whether autograd itself is adding up gradients, and not a function that it calls.

    It adds in place where nobody else has the first one. To tensors that are watched it never adds
    in place, so the sum is a new storage here; the first one's ends right after it.
    """
    while caller is not None and caller.f_code.co_name in _WRAPPERS:
        caller = caller.f_back
    return (
        caller is not None
        and caller.f_code.co_name == "_engine_run_backward"
        and len(given) == 2
        and given[0].untyped_storage().nbytes() == given[0].numel() * given[0].element_size()
    )


def _in_bfloat16(value: Any) -> Any:
    return (
        value.to(torch.bfloat16)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _spec(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorSpec(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, tuple | list):
        return tuple(_spec(item) for item in value)
    return value if _is_hashable(value) else str(value)


def _is_hashable(value: Any) -> bool:
    return isinstance(value, None | bool | int | float | str | torch.dtype | torch.device)
