"""Where no adapter acts, the base model is untouched, bit for bit."""

from __future__ import annotations

import pytest
import torch

from graft.adapt.model import get_peft_model
from graft.errors import ConfigError

from .cases import BASE, Case
from .families import Family
from .rows import assert_same, attach, batch, make_rows, train


@torch.no_grad()  # which kernel runs depends on it
def test_untrained_adapter_is_the_identity(family: Family, case: Case) -> None:
    inputs = batch(family, make_rows(3))
    base = family.model()
    plain = base(**inputs)
    model = get_peft_model(base, case.config(family))
    fresh = model(**inputs)
    if case.at_layers:  # virtual tokens start as tokens, which are seen
        assert_same(fresh.logits, plain.logits)
    train(model, "default")
    assert not torch.allclose(model(**inputs).logits, fresh.logits, atol=1e-3)


@torch.no_grad()
def test_base_rows_and_disabled_adapters(family: Family, case: Case) -> None:
    inputs = batch(family, make_rows(3))
    plain = family.model()(**inputs, output_hidden_states=True)
    model = attach(family.model(), family, [case])
    name = case.name
    assert_same(model(**inputs, adapter_names=[BASE] * 3).logits, plain.logits)
    adapted = model(**inputs).logits
    with model.disable_adapter():
        assert_same(model(**inputs, output_hidden_states=True), plain)
        if family.generates:
            prompt = {key: inputs[key] for key in ("input_ids", "attention_mask")}
            wanted = family.model().generate(**prompt, max_new_tokens=3)
            assert_same(model.generate(**prompt, max_new_tokens=3), wanted)
    assert_same(model(**inputs).logits, adapted)
    assert model.active_adapters == [name]
    if case.name in family.shared:
        with pytest.raises(ConfigError, match="cannot be told apart"):
            model(**inputs, adapter_names=[name, BASE, BASE])
    elif case.at_layers:  # nothing changes the shape of the batch
        mixed = model(**inputs, adapter_names=[name, BASE, BASE]).logits
        assert_same(mixed[1:], plain.logits[1:])


@torch.no_grad()
def test_set_add_and_delete(family: Family, case: Case) -> None:
    inputs = batch(family, make_rows(3))
    base = family.model()
    hooks = count_hooks(base)
    plain, names = base(**inputs).logits, [name for name, _ in base.named_modules()]
    model = attach(base, family, [case])
    first = model(**inputs).logits
    model.add_adapter("second", case.config(family))
    train(model, "second")
    assert_same(model(**inputs).logits, first)  # it does not act before it is active
    model.set_adapter("second")
    second = model(**inputs).logits
    assert not torch.allclose(second, first, atol=1e-3)
    model.set_adapter(case.name)
    assert_same(model(**inputs).logits, first)
    model.delete_adapter(case.name)
    assert model.active_adapters == []
    assert_same(model(**inputs).logits, plain)
    model.set_adapter("second")
    assert_same(model(**inputs).logits, second)
    assert model.unload() is base
    assert_same(base(**inputs).logits, plain)
    assert count_hooks(base) == hooks
    assert [name for name, _ in base.named_modules()] == names


def count_hooks(module: torch.nn.Module) -> int:
    """Hooks in all of `module`."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
