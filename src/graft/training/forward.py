"""The loss of a batch: on packed rows where the model can, else on padded ones.

A model is tried before its first step; what it cannot do is told, and its batches are padded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from graft.adapt import PeftModel
from graft.config import TaskType
from graft.packing import (
    PackedForward,
    PackedLayers,
    Unpackable,
    proven_forward,
    proven_layers,
    without_cache,
)

__all__ = ["Forward", "make_forward", "without_dropout"]

Inputs = dict[str, Tensor]


class Forward(ABC):
    """How a batch meets the model.

    Attributes:
        how: In words.
    """

    how: str

    @abstractmethod
    def loss(self, inputs: Inputs, targets: int) -> Tensor:
        """The mean loss over the labels of a padded batch, of which there are `targets`."""


def make_forward(model: PeftModel, task_type: TaskType) -> Forward:
    """The leanest way that gives the model's own results; see `graft.packing.proof`."""
    kind = next(model.base_model.parameters()).device.type
    if kind != "cpu":
        # Segments are attended to one by one: on a GPU that may cost more than padding.
        return _Padded(model, f"packing has not been measured on {kind}")
    try:
        if task_type is TaskType.CAUSAL_LM:
            return _Rows(proven_forward(model))
        return _Layers(proven_layers(model))
    except Unpackable as reason:
        return _Padded(model, str(reason))


class _Rows(Forward):
    """CAUSAL_LM: rows one behind the other, the head where there is a label."""

    how = "rows are packed"

    def __init__(self, packed: PackedForward) -> None:
        self.packed = packed

    def loss(self, inputs: Inputs, targets: int) -> Tensor:
        kept = inputs["attention_mask"].bool()
        pairs = zip(inputs["input_ids"], inputs["labels"], kept, strict=True)
        rows, labels = zip(*((ids[k], own[k]) for ids, own, k in pairs), strict=True)
        total, _ = self.packed.loss(rows, labels, [1 / targets] * len(rows))
        return total


class _Layers(Forward):
    """Any other task: the layers see packed rows, what is in front and behind padded ones."""

    how = "rows are packed between embeddings and head"

    def __init__(self, packed: PackedLayers) -> None:
        self.packed = packed
        self.options = without_cache(packed.model)

    def loss(self, inputs: Inputs, targets: int) -> Tensor:
        with self.packed.packing(inputs["attention_mask"]):
            return self.packed.model(**inputs, **self.options).loss


class _Padded(Forward):
    """Whatever cannot be packed."""

    def __init__(self, model: PeftModel, reason: str) -> None:
        self.model = model
        self.how = f"rows are padded ({reason.rstrip('.')})"

    def loss(self, inputs: Inputs, targets: int) -> Tensor:
        return self.model(**inputs).loss


@contextmanager
def without_dropout(base: nn.Module) -> Iterator[None]:
    """Switch off all dropout of a frozen base model inside the block.

    What is frozen is not regularised, and is the same in every step and for every adapter.
    """
    before: list[tuple[nn.Module, str, float]] = []
    for module in base.modules():
        for name, value in vars(module).items():
            of_dropout = name == "p" if isinstance(module, nn.Dropout) else "drop" in name
            if of_dropout and isinstance(value, float):
                before.append((module, name, value))
    for module, name, _ in before:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
