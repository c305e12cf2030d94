"""The loss of one forward pass: on packed rows where the model can, else on padded ones.

A pass holds a batch of one adapter, or batches of several whose rows are routed. A model is tried
before its first step; what it cannot do is told, and its batches are padded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graft.adapt import PeftModel
from graft.config import TaskType
from graft.errors import ConfigError
from graft.packing import (
    PackedForward,
    PackedLayers,
    PackedPairs,
    Unpackable,
    attention_configs,
    packed_forward,
    proven_forward,
    proven_layers,
    why_padded,
    without_cache,
)
from graft.training.batches import Batch, joined
from graft.training.losses import summed_loss

__all__ = ["Forward", "Padded", "Part", "make_forward", "propagate", "without_dropout"]


@dataclass(frozen=True)
class Part:
    """One batch in a forward pass.

    Attributes:
        batch: On the device that the forward takes it on.
        weight: Of each of its targets in the loss of the pass.
        adapter: Whose rows they are; None: of whatever adapters are active.
    """

    batch: Batch
    weight: float
    adapter: str | None = None

    @property
    def names(self) -> list[str]:
        """The adapter of each row."""
        assert self.adapter is not None
        return [self.adapter] * self.batch.rows


class Forward(ABC):
    """How batches meet the model.

    Attributes:
        how: In words.
        pads: Whether rows are as long as the longest one of the pass.
        takes_on: The device on which batches are taken.
    """

    how: str
    pads: bool
    takes_on: torch.device

    @abstractmethod
    def loss(self, parts: Sequence[Part]) -> tuple[Tensor, list[Tensor]]:
        """The weighted sum of the targets' losses, and each part's share, without a gradient.

        Args:
            parts: Batches of different adapters, or one.
        """

    def outputs(self, inputs: dict[str, Tensor], names: Sequence[str] | None = None) -> Any:
        """A model's outputs for a padded batch, where it has logits for all of it.

        Args:
            inputs: Of the batch.
            names: The adapter of each row; None: the active ones.
        """
        raise NotImplementedError(f"{type(self).__name__} computes the loss alone.")


def make_forward(
    model: PeftModel, task_type: TaskType, kind: str | None = None, proven: bool = True
) -> Forward:
    """The leanest way that gives the model's own results; see `graft.packing.proof`.

    Args:
        model: The base model with its adapters.
        task_type: What the rows are.
        kind: Of device; None: where the model is.
        proven: False: whether a model packs is told from its build alone, without any numbers.
    """
    one = next(model.base_model.parameters())
    kind = kind or one.device.type
    reason = why_padded(kind, one.dtype)
    if kind == "cuda" and not proven:
        reason = "an upper bound: where the GPU's kernel is proven, rows are packed"
    if reason is not None:
        return Padded(model, task_type, reason)
    try:
        if task_type in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM):
            return _Rows(proven_forward(model) if proven else packed_forward(model), task_type)
        return _Layers(proven_layers(model) if proven else PackedLayers(model), task_type)
    except Unpackable as reason:
        return Padded(model, task_type, str(reason))


class _Rows(Forward):
    """Language models: rows one behind the other, the head where there is a label."""

    how = "rows are packed"
    pads = False

    def __init__(self, packed: PackedForward | PackedPairs, task_type: TaskType) -> None:
        self.packed, self.task_type = packed, task_type
        self.takes_on = torch.device("cpu")  # where rows are cut to their own lengths

    def loss(self, parts: Sequence[Part]) -> tuple[Tensor, list[Tensor]]:
        rows: list[Tensor] = []
        labels: list[Tensor] = []
        for part in parts:
            inputs = part.batch.inputs
            kept = inputs["attention_mask"].bool()
            rows += [ids[own] for ids, own in zip(inputs["input_ids"], kept, strict=True)]
            if self.task_type is TaskType.CAUSAL_LM:
                labels += [ids[own] for ids, own in zip(inputs["labels"], kept, strict=True)]
            else:  # a target is of a length of its own
                labels += list(inputs["labels"])
        sizes = [part.batch.rows for part in parts]
        weights = [part.weight for part in parts for _ in range(part.batch.rows)]
        total, by_row = self.packed.loss(rows, labels, weights, _names(parts))
        shares = zip(by_row.split(sizes), parts, strict=True)
        return total, [own.sum() * part.weight for own, part in shares]


class Padded(Forward):
    """Rows as long as the longest one: whatever cannot be packed."""

    pads = True

    def __init__(self, model: PeftModel, task_type: TaskType, reason: str) -> None:
        self.model, self.task_type = model, task_type
        self.how = f"rows are padded ({reason.rstrip('.')})"
        self.takes_on = next(model.base_model.parameters()).device

    def loss(self, parts: Sequence[Part]) -> tuple[Tensor, list[Tensor]]:
        outputs = self.outputs(joined([part.batch for part in parts]), _names(parts))
        if len(parts) == 1:
            total = outputs.loss * (parts[0].batch.targets * parts[0].weight)
            return total, [total.detach()]
        if any(name.endswith("aux_loss") and value is not None for name, value in outputs.items()):
            raise ConfigError("a loss of the base model's routers is of all rows of a pass")
        sums = summed_loss(self.task_type, outputs, [part.batch.inputs for part in parts])
        weighted = [own * part.weight for own, part in zip(sums, parts, strict=True)]
        return torch.stack(weighted).sum(), [own.detach() for own in weighted]

    def outputs(self, inputs: dict[str, Tensor], names: Sequence[str] | None = None) -> Any:
        return self.model(**inputs, adapter_names=names)


class _Layers(Padded):
    """Layers see packed rows, what is in front of them and behind padded ones."""

    pads = False  # but for what is in front; True once rows cannot be packed

    def __init__(self, packed: PackedLayers, task_type: TaskType) -> None:
        super().__init__(packed.model, task_type, "")
        self.how = "rows are packed between embeddings and head"
        self.packed = packed
        self.options = without_cache(packed.model)

    def outputs(self, inputs: dict[str, Tensor], names: Sequence[str] | None = None) -> Any:
        if not self.pads:
            try:
                with self.packed.packing(inputs["attention_mask"], names):
                    return self.model(**inputs, **self.options, adapter_names=names)
            except Unpackable:  # rows as long as these did not occur in the proof
                self.pads = True
        return super().outputs(inputs, names)


def propagate(loss: Tensor, model: PeftModel, trained: Iterable[Iterable[nn.Parameter]]) -> None:
    """Let the gradient of `loss` add up in what is trained.

    Args:
        loss: Of a pass.
        model: The model with adapters.
        trained: Of each adapter in the pass its parameters.

    Raises:
        ConfigError: An adapter has no part in the loss: some models read weights of layers that
            they do not call.
    """
    if loss.requires_grad:
        loss.backward()
        if all(any(p.grad is not None for p in own) for own in trained):
            return
    layers = [path for path, site in model.sites.items() if site.adapters]
    named = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    raise ConfigError(
        f"{type(model.base_model).__name__} computes this loss without what is to be trained"
        f"{f': it does not call {named}' if named else ''}. Name other `target_modules`, or take "
        "another method."
    )


def _names(parts: Sequence[Part]) -> list[str] | None:
    """The adapter of each row; None where the active ones act on all."""
    if parts[0].adapter is None:
        return None
    return [name for part in parts for name in part.names]


@contextmanager
def without_dropout(model: PeftModel) -> Iterator[None]:
    """Switch off all dropout of a frozen base model, and of heads beside it, inside the block.

    What is frozen is not regularised, and is the same in every step and for every adapter.
    """
    heads = [head for name in model.adapters for head in model.adapter(name).saved.values()]
    modules = [module for root in (model.base_model, *heads) for module in root.modules()]
    before: list[tuple[Any, str, float]] = []
    for owner in (*modules, *attention_configs(model.base_model)):  # some ask their config
        for name, value in vars(owner).items():
            of_dropout = name == "p" if isinstance(owner, nn.Dropout) else "drop" in name
            if of_dropout and isinstance(value, float):
                before.append((owner, name, value))
    for owner, name, _ in before:
        setattr(owner, name, 0.0)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
