"""Rows of ids, batches of them, and adapters on them, as every contract needs them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graft.adapt.model import PeftModel
from graft.config import TaskType

from .cases import Case
from .families import PAD, VOCAB, Family

__all__ = [
    "assert_near",
    "assert_same",
    "attach",
    "batch",
    "make_rows",
    "of_row",
    "train",
]

LENGTHS = (5, 3, 7, 4, 6, 7, 3, 5, 8, 2, 4, 6, 3, 5)
TARGETS = (4, 3, 2, 4, 3, 2, 4, 3, 3, 2, 4, 3, 3, 2)  # of what the decoder of a pair reads


def make_rows(count: int) -> list[Tensor]:
    """`count` rows of random ids, none of them special."""
    dice = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (LENGTHS[i],), generator=dice) for i in range(count)]


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


def attach(
    base: nn.Module, family: Family, cases: Iterable[Case], task: TaskType | None = None
) -> PeftModel:
    """`base` with one adapter per case, the first one active; all as if trained."""
    model = PeftModel(base)
    for count, case in enumerate(cases, start=2):
        torch.manual_seed(count)
        own = {} if case.at_layers else {"num_virtual_tokens": count}  # each another number
        config = case.config(family, task_type=task or family.task, **own)
        model.add_adapter(case.name, config)
        train(model, case.name)
    model.set_adapter(next(iter(model.adapters)))
    return model


def train(model: PeftModel, name: str) -> None:
    """Move every parameter of an adapter away from where it starts."""
    dice = torch.Generator().manual_seed(zlib.crc32(name.encode()))
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


def assert_same(actual: Any, expected: Any) -> None:
    """Equal bit for bit, also in nests of tensors."""
    if isinstance(expected, Tensor):
        assert actual.shape == expected.shape
        assert torch.equal(actual, expected)
    elif expected is None:
        assert actual is None
    else:
        assert len(actual) == len(expected)
        values = zip(_listed(actual), _listed(expected), strict=True)
        for own, wanted in values:
            assert_same(own, wanted)


def _listed(nest: Any) -> list[Any]:
    return list(nest.values()) if isinstance(nest, dict) else list(nest)


def score(logits: Tensor) -> Tensor:
    """A number that depends on every logit in its own way."""
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return (weights * logits.tanh()).sum()


def gradients(model: PeftModel, inputs: dict[str, Tensor], **how: Any) -> dict[str, Tensor]:
    """The gradient of the score by every parameter that learns from it."""
    score(model(**inputs, **how).logits).backward()
    return taken_gradients(model)


def taken_gradients(model: PeftModel) -> dict[str, Tensor]:
    """The gradient of every parameter that has one, taken away from it."""
    taken = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def shapes(nest: Any) -> Any:
    """The shapes of all tensors, in the nest in which they came; caches aside."""
    if isinstance(nest, Tensor):
        return tuple(nest.shape)
    if isinstance(nest, dict):
        return {name: shapes(value) for name, value in nest.items() if name != "cache"}
    return [shapes(value) for value in nest] if isinstance(nest, tuple | list) else nest
