"""A mixed batch equals each row alone: adapters of all methods at once, and rows without any."""

from __future__ import annotations

import torch
from torch import Tensor

from graft.adapt.model import PeftModel

from .cases import BASE
from .families import Family
from .rows import assert_near, batch, make_rows, of_row


def test_logits_and_gradients(family: Family, crowd: tuple[PeftModel, list[str]]) -> None:
    model, names = crowd
    rows = make_rows(len(names))
    logits = model(**batch(family, rows), adapter_names=names).logits
    score = sum(_score(of_row(family, logits, rows, index)) for index in range(len(rows)))
    assert isinstance(score, Tensor)
    score.backward()
    together = _taken_gradients(model)
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        alone = model(**batch(family, [row], first=index), adapter_names=[name]).logits
        assert_near(of_row(family, logits, rows, index), alone[0])
        if name != BASE:
            _score(alone[0]).backward()
    apart = _taken_gradients(model)
    assert together.keys() == apart.keys()
    for name, gradient in apart.items():
        assert_near(together[name], gradient)
        assert gradient.any(), f"{name} learns nothing"


def _score(logits: Tensor) -> Tensor:
    """A number that depends on every logit [T, V] in its own way."""
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return (weights * logits.tanh()).sum()


def _taken_gradients(model: PeftModel) -> dict[str, Tensor]:
    """The gradient of every parameter that has one, taken away from it."""
    taken = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken
