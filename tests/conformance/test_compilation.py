"""Adapters attached after a model was compiled act, and go when they are taken off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from .cases import Case
from .families import Family
from .rows import assert_near, attach, batch, make_rows, train


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.only(lambda family, case: family.name == "Llama" and not case.settings)
@torch.no_grad()
def test_adapters_after_compilation(family: Family, case: Case) -> None:
    family = replace(family, settings={**family.settings, "num_hidden_layers": 1})
    inputs = batch(family, make_rows(2))
    wanted = attach(family.model(), family, [case])(**inputs).logits
    base = family.model().requires_grad_(False)  # or freezing it would compile it anew
    plain = base(**inputs).logits
    base.forward = torch.compile(base.forward, backend="eager")
    assert_near(base(**inputs).logits, plain)  # as adapters at layers will call it
    for count in (3, 2):  # as virtual tokens will; after two for any numbers of rows and tokens
        given = batch(family, make_rows(count))
        positions = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
        compiled = base(**given, position_ids=positions, return_dict=True).logits
    assert_near(compiled, plain)
    model = attach(base, family, [case])
    assert_near(model(**inputs).logits, wanted)
    train(model, case.name)
    assert not torch.allclose(model(**inputs).logits, wanted, atol=1e-3)
    model.delete_adapter(case.name)
    assert_near(model(**inputs).logits, plain)
