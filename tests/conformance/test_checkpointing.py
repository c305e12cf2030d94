"""Gradient checkpointing changes no gradient, whenever it is turned on, with rows of any mix."""

from __future__ import annotations

from torch import Tensor

from graft.adapt.model import PeftModel
from graft.methods import Lora

from .cases import Case
from .families import Family
from .rows import assert_near, attach, batch, gradients, make_rows


def test_on_equals_off(family: Family, case: Case) -> None:
    inputs = batch(family, make_rows(3))
    wanted = gradients(attach(family.model(), family, [case]).train(), inputs)
    after = attach(family.model(), family, [case]).train()
    after.gradient_checkpointing_enable()
    beneath = attach(family.model(), family, [case]).train()
    beneath.base_model.activation_checkpointing_enable()
    base = family.model()
    base.activation_checkpointing_enable()
    before = attach(base, family, [case]).train()
    for model in (after, beneath, before):
        assert_near_all(gradients(model, inputs), wanted)
        assert model.base_model.is_activation_checkpointing


def test_mixed_rows(family: Family, crowd: tuple[PeftModel, list[str]]) -> None:
    model, names = crowd
    model.train()
    inputs = batch(family, make_rows(len(names)))
    wanted = gradients(model, inputs, adapter_names=names)
    model.gradient_checkpointing_enable()
    assert_near_all(gradients(model, inputs, adapter_names=names), wanted)


def assert_near_all(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_near(actual[name], gradient)


def test_nothing_is_left_at_the_embeddings(family: Family) -> None:
    """A gradient asked of them would take the backward pass below the lowest adapted layer."""
    model = attach(family.model(), family, [Case(Lora)]).train()
    before = {name: len(m._forward_hooks) for name, m in model.base_model.named_modules()}
    model.gradient_checkpointing_enable()
    assert {n: len(m._forward_hooks) for n, m in model.base_model.named_modules()} == before
