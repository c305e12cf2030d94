"""Rows of ids, batches of them, and adapters on them, as every contract needs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graft.adapt.model import PeftModel
from graft.config import PeftConfig
from graft.methods import METHODS, LayerAdapter, VirtualTokens

from .families import PAD, VOCAB, Family

__all__ = [
    "BASE",
    "Method",
    "assert_near",
    "attach",
    "batch",
    "config_of",
    "crowd",
    "make_rows",
    "of_row",
    "train",
]

Method = type[LayerAdapter] | type[VirtualTokens]
BASE = "__base__"
LENGTHS = (5, 3, 7, 4, 6, 7, 3, 5)
TARGETS = (4, 3, 2, 4, 3, 2, 4, 3)  # tokens that the decoder of an encoder-decoder reads


def make_rows(count: int, lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    """`count` rows of random ids, none of them special."""
    dice = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (lengths[i],), generator=dice) for i in range(count)]


def batch(
    family: Family, rows: Sequence[Tensor], side: str | None = None, first: int = 0
) -> dict[str, Tensor]:
    """The rows padded to one batch, as the base model takes it.

    Args:
        family: Whose inputs to make.
        rows: Ids.
        side: Where pads stand; None: left in a decoder, else right.
        first: Number of the first row, which decides what a decoder behind an encoder reads.
    """
    side = side or ("left" if family.kind == "decoder" else "right")
    inputs = _padded(rows, side)
    if family.needs_positions:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    if family.kind == "encoder-decoder":
        dice = torch.Generator().manual_seed(2)
        drawn = [torch.randint(3, VOCAB, (n,), generator=dice) for n in TARGETS]
        inputs["decoder_input_ids"] = _padded(drawn[first : first + len(rows)], "right")[
            "input_ids"
        ]
    return inputs


def _padded(rows: Sequence[Tensor], side: str) -> dict[str, Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, where], mask[index, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def of_row(
    family: Family, logits: Tensor, rows: Sequence[Tensor], index: int, side: str | None = None
) -> Tensor:
    """What `logits` [B, T, ...] of a batch say on the tokens of one row."""
    if family.kind == "encoder-decoder":
        return logits[index, : TARGETS[index]]
    side = side or ("left" if family.kind == "decoder" else "right")
    return (
        logits[index, -len(rows[index]) :] if side == "left" else logits[index, : len(rows[index])]
    )


def config_of(method: Method, family: Family, **values: Any) -> PeftConfig:
    """The plainest config of `method`."""
    if issubclass(method, VirtualTokens):
        values = {"num_virtual_tokens": 3, **values}
    return method.config_class(task_type=family.task, **values)


def attach(
    base: nn.Module, family: Family, methods: Iterable[Method], dtype: Any = None
) -> PeftModel:
    """`base` with one adapter per method, called by its class; all as if trained."""
    model = PeftModel(base)
    for count, method in enumerate(methods, start=2):
        some = {"num_virtual_tokens": count} if issubclass(method, VirtualTokens) else {}
        model.add_adapter(method.__name__, config_of(method, family, **some))
        train(model, method.__name__)
    model.set_adapter([next(iter(model.adapters))])
    return model


def crowd(family: Family) -> tuple[PeftModel, list[str]]:
    """A model with one adapter of every method, and a name for each of eight shuffled rows."""
    methods = [m for kind, m in METHODS.items() if kind not in family.refused]
    names = [m.__name__ for m in methods]
    shuffled = [names[-1], BASE, *names[:3], names[0], *names[3:], BASE][:8]
    assert {*names, BASE} == set(shuffled)
    return attach(family.model(), family, methods), shuffled


def train(model: PeftModel, name: str) -> None:
    """Move every parameter of an adapter away from where it starts."""
    dice = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in model.adapter(name).parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=dice, dtype=parameter.dtype)
            )


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` times the largest number expected (at least 1)."""
    assert actual.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    error = (actual - expected).abs().max().item() if expected.numel() else 0.0
    assert error <= tolerance * scale, f"off by {error:.2e} at a scale of {scale:.3g}"
