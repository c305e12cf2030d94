"""Pads change nothing: a padded batch gives what each row gives alone without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graft.config import TaskType

from .cases import Case
from .families import EOS, Family
from .rows import assert_near, attach, batch, make_rows, of_row


def test_padded_equals_unpadded(family: Family, case: Case) -> None:
    model = attach(family.model(), family, [case])
    rows = make_rows(3)
    alone = [model(**batch(family, [row], first=i)).logits[0] for i, row in enumerate(rows)]
    # An encoder's positions count from the left, so its pads stand on the right.
    for side in ("left", "right") if family.kind == "decoder" else ("right",):
        inputs = batch(family, rows, side)
        variants = [inputs]
        if not case.at_layers:  # graft counts positions where the caller does not
            variants.append({k: v for k, v in inputs.items() if k != "position_ids"})
        for given in variants:
            logits = model(**given).logits
            for index in range(len(rows)):
                assert_near(of_row(family, logits, rows, index, side), alone[index])


@pytest.mark.only(lambda family, case: TaskType.SEQ_CLS in family.tasks)
def test_padded_classifier_equals_unpadded(family: Family, case: Case) -> None:
    task = TaskType.SEQ_CLS
    model = attach(family.model(task), family, [case], task)
    rows = make_rows(3)
    for row in rows:
        row[-1] = EOS  # where T5 and BART look
    alone = torch.cat([model(**classified(family, [row])).logits for row in rows])
    for side in ("left", "right") if family.kind == "decoder" else ("right",):
        assert_near(model(**classified(family, rows, side)).logits, alone)


def classified(family: Family, rows: list[Tensor], side: str = "right") -> dict[str, Tensor]:
    """The rows for a classifier, whose decoder, where there is one, reads the same ids."""
    inputs = batch(family, rows, side)
    inputs.pop("decoder_input_ids", None)
    return inputs
