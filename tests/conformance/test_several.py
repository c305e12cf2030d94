"""Several adapters at once, of different methods, do what each of them does in turn."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from graft.adapt.model import PeftModel
from graft.methods import IA3, BitFit, Lora, PrefixTuning, PromptTuning

from .cases import BASE, Case
from .families import Family
from .rows import assert_near, assert_same, attach, batch, make_rows, of_row

PAIRS = [(Lora, IA3), (IA3, Lora), (BitFit, IA3), (IA3, BitFit), (Lora, BitFit)]


def test_layers_and_virtual_tokens(family: Family, case: Case) -> None:
    """An adapter at layers beside virtual tokens: as virtual tokens on the merged weights."""
    other = Case(PromptTuning if case.at_layers else Lora)
    at_layers, virtual = (case, other) if case.at_layers else (other, case)
    model = attach(family.model(), family, [at_layers, virtual])
    names = [at_layers.name, virtual.name]
    rows = make_rows(3)
    inputs = batch(family, rows)
    model.set_adapter(names)
    both = model(**inputs).logits
    assert_same(model(**inputs, adapter_names=[names] * 3).logits, both)
    if not model.saved:  # of several new heads the last one acts
        model.set_adapter(names[::-1])
        assert_near(model(**inputs).logits, both)
    if at_layers.name not in family.shared:
        mixed = model(**inputs, adapter_names=[names, BASE, virtual.name]).logits
        assert_near(of_row(family, mixed, rows, 0), of_row(family, both, rows, 0))
    model.merge_adapter([at_layers.name])
    model.set_adapter(virtual.name)
    assert_near(model(**inputs).logits, both)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(m.__name__ for m in pair))
def test_two_at_one_layer(family: Family, pair: tuple) -> None:
    """Two adapters at one layer: as one after the other folded into its weight."""
    cases = [Case(method) for method in pair]
    model = attach(family.model(), family, cases)
    model.set_adapter([case.name for case in cases])
    inputs = batch(family, make_rows(1))
    both = model(**inputs).logits
    model.merge_adapter()
    assert_near(model(**inputs).logits, both)


@pytest.mark.only(lambda family, case: family.kind == "decoder")
def test_prompt_and_prefix(family: Family) -> None:
    """`[prefix; prompt; text]`, as the base model reads it from a cache and from embeddings."""
    model = PeftModel(family.model())
    for case in (Case(PromptTuning), Case(PrefixTuning)):
        model.add_adapter(case.name, case.config(family, num_virtual_tokens=1))
    model.set_adapter(["PromptTuning", "PrefixTuning"])
    ids = make_rows(2)[1][None]  # [1, 3]: within any window
    prompt = model.adapter("PromptTuning").virtual_tokens.embeddings()
    key_values = model.adapter("PrefixTuning").virtual_tokens.key_values()
    base = family.model()
    cache = DynamicCache([(layer[0][None], layer[1][None]) for layer in key_values])
    embeddings = torch.cat([prompt[None], base.get_input_embeddings()(ids)], dim=1)
    mask = torch.ones(1, 5, dtype=torch.long)
    wanted = base(inputs_embeds=embeddings, cache=cache, attention_mask=mask).logits[:, 1:]
    assert_near(model(input_ids=ids).logits, wanted)
