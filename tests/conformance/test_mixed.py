"""A mixed batch equals each row alone: adapters of all methods at once, and rows without any."""

from __future__ import annotations

from torch import Tensor

from graft.adapt.model import PeftModel

from .cases import BASE
from .families import Family
from .rows import assert_near, batch, make_rows, of_row, score, taken_gradients


def test_logits_and_gradients(family: Family, crowd: tuple[PeftModel, list[str]]) -> None:
    model, names = crowd
    rows = make_rows(len(names))
    logits = model(**batch(family, rows), adapter_names=names).logits
    total = sum(score(of_row(family, logits, rows, index)) for index in range(len(rows)))
    assert isinstance(total, Tensor)
    total.backward()
    together = taken_gradients(model)
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        alone = model(**batch(family, [row], first=index), adapter_names=[name]).logits
        assert_near(of_row(family, logits, rows, index), alone[0])
        if name != BASE:
            score(alone[0]).backward()
    apart = taken_gradients(model)
    assert together.keys() == apart.keys()
    for name, gradient in apart.items():
        assert_near(together[name], gradient)
        assert gradient.any(), f"{name} learns nothing"
