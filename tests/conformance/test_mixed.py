"""A mixed batch equals each row alone: adapters of all methods at once, and rows without any."""

from __future__ import annotations

import torch
from torch import Tensor

from graft.adapt.model import PeftModel
from graft.config import TaskType

from .cases import BASE
from .conftest import Crowds
from .families import EOS, Family
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


@torch.no_grad()
def test_other_tasks(family: Family, crowd_of: Crowds) -> None:
    for task in family.tasks:
        if task == family.task:
            continue
        model, names = crowd_of(task)
        rows = make_rows(len(names))
        for row in rows:
            row[-1] = EOS  # where T5 and BART look for a class
        together = model(**inputs_of(family, task, rows), adapter_names=names)
        for index, (row, name) in enumerate(zip(rows, names, strict=True)):
            alone = model(**inputs_of(family, task, [row], index), adapter_names=[name])
            for kind, value in alone.items():
                if isinstance(value, Tensor):
                    assert_near(together[kind][index, : value.shape[1]], value[0])


def inputs_of(
    family: Family, task: TaskType, rows: list[Tensor], first: int = 0
) -> dict[str, Tensor]:
    """The rows, padded on the right; a decoder reads the encoder's ids where it has none."""
    inputs = batch(family, rows, "right", first)
    if task != TaskType.FEATURE_EXTRACTION:
        inputs.pop("decoder_input_ids", None)
    return inputs
