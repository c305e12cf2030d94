"""However the rows are given, the outcome is the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graft.adapt.model import PeftModel
from graft.errors import ConfigError
from graft.methods import PrefixAdapter

from .cases import Case
from .families import Family
from .rows import assert_near, assert_same, attach, batch, make_rows, of_row


@torch.no_grad()
def test_embeddings_positions_and_masks(family: Family, case: Case) -> None:
    model = attach(family.model(), family, [case])
    row = make_rows(1)
    inputs = batch(family, row)
    wanted = model(**inputs).logits
    embedded = {**inputs, "inputs_embeds": embeddings_of(family, model, inputs["input_ids"])}
    del embedded["input_ids"]
    # RoBERTa itself counts embeddings from the first position, whatever its cache holds.
    if not (family.name == "Roberta" and issubclass(case.method, PrefixAdapter)):
        assert_near(model(**embedded).logits, wanted)
    unmasked = {name: value for name, value in inputs.items() if name != "attention_mask"}
    assert_near(model(**unmasked).logits, wanted)
    named = {name: value for name, value in inputs.items() if name != "input_ids"}
    assert_same(model(inputs["input_ids"], **named).logits, wanted)


@pytest.mark.only(lambda family, case: family.kind == "decoder")
@torch.no_grad()
def test_chosen_logits(family: Family, case: Case) -> None:
    model = attach(family.model(), family, [case])
    inputs = batch(family, make_rows(3))
    wanted = model(**inputs).logits
    assert_near(model(**inputs, logits_to_keep=2).logits, wanted[:, -2:])
    places = torch.tensor([1, 4, 6])
    assert_near(model(**inputs, logits_to_keep=places).logits, wanted[:, places])


def test_half_precision(family: Family, case: Case) -> None:
    """Outputs keep the base model's dtype, adapters and their gradients are fp32."""
    model = attach(family.model().to(torch.bfloat16), family, [case])
    logits = model(**batch(family, make_rows(3))).logits
    assert logits.dtype == torch.bfloat16
    logits.float().square().mean().backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in learning} == {torch.float32}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)


def test_embeddings_behind_different_prefixes(
    family: Family, crowd: tuple[PeftModel, list[str]]
) -> None:
    model, names = crowd
    rows = make_rows(len(names))
    inputs = batch(family, rows)
    wanted = model(**inputs, adapter_names=names).logits
    embedded = {**inputs, "inputs_embeds": embeddings_of(family, model, inputs["input_ids"])}
    del embedded["input_ids"]
    if family.kind == "encoder" and not family.no_cache:
        with pytest.raises(ConfigError, match="need input_ids or position_ids"):
            model(**embedded, adapter_names=names)
    else:
        logits = model(**embedded, adapter_names=names).logits
        for index in range(len(rows)):
            given = of_row(family, logits, rows, index)
            assert_near(given, of_row(family, wanted, rows, index))


def embeddings_of(family: Family, model: PeftModel, ids: Tensor) -> Tensor:
    """What the base model looks up for `ids`."""
    base = model.base_model
    owner = base.get_encoder() if family.kind == "encoder-decoder" else base
    return owner.get_input_embeddings()(ids)
