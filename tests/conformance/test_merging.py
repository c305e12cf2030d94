"""Merged equals adapted; unmerged is the base model bit for bit; what cannot be merged says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graft.errors import MergeError

from .cases import Case
from .families import Family
from .rows import assert_near, assert_same, attach, batch, make_rows


@pytest.mark.only(lambda family, case: case.at_layers)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_merged_equals_adapted(
    family: Family, case: Case, dtype: torch.dtype, tolerance: float
) -> None:
    base = family.model().to(dtype)
    if dtype == torch.float64:
        base.set_experts_implementation("eager")  # the others have no fp64
    own = weights(base)
    inputs = batch(family, make_rows(1))
    model = attach(base, family, [case])
    adapted = model(**inputs).logits
    model.merge_adapter()
    assert model.merged_adapters == [case.name]
    assert_near(model(**inputs).logits, adapted, tolerance)
    with model.disable_adapter():
        assert_same(weights(base), own)
    assert_near(model(**inputs).logits, adapted, tolerance)
    model.unmerge_adapter()
    assert_same(weights(base), own)
    assert_same(model(**inputs).logits, adapted)


@pytest.mark.only(lambda family, case: not case.at_layers)
def test_virtual_tokens_cannot_be_merged(family: Family, case: Case) -> None:
    inputs = batch(family, make_rows(1))
    model = attach(family.model(), family, [case])
    adapted = model(**inputs).logits
    with pytest.raises(MergeError, match="virtual tokens"):
        model.merge_adapter()
    with pytest.raises(MergeError, match="virtual tokens"):
        model.merge_and_unload()
    assert_same(model(**inputs).logits, adapted)


@pytest.mark.only(lambda family, case: case.at_layers)
def test_ten_cycles_in_half_precision(family: Family, case: Case) -> None:
    base = family.model().to(torch.bfloat16)
    own = weights(base)
    model = attach(base, family, [case])
    for _ in range(10):
        model.merge_adapter()
        merged = weights(base)
        assert any(not torch.equal(merged[n], own.get(n, torch.empty(0))) for n in merged)
        model.unmerge_adapter()
    assert_same(weights(base), own)


@pytest.mark.only(lambda family, case: case.at_layers)
def test_merging_one_of_two(family: Family, case: Case) -> None:
    """With one merged and another active, the model is as with both active in that order."""
    inputs = batch(family, make_rows(1))
    other = Case(case.method, {"modules_to_save": None})
    model = attach(family.model(), family, [case, other])
    model.set_adapter([case.name, other.name])
    both = model(**inputs).logits
    model.merge_adapter([case.name])
    assert_near(model(**inputs).logits, both)
    model.merge_adapter()
    assert_near(model(**inputs).logits, both)
    model.unmerge_adapter()
    assert_same(model(**inputs).logits, both)


@pytest.mark.only(lambda family, case: case.at_layers)
def test_merge_and_unload(family: Family, case: Case) -> None:
    inputs = batch(family, make_rows(1))
    base = family.model()
    has_biases = any(name.endswith(".bias") for name, _ in base.named_parameters())
    model = attach(base, family, [case])
    adapted = model(**inputs).logits
    if case.name == "BitFit" and not has_biases:
        with pytest.raises(MergeError, match="has no place for one"):
            model.merge_and_unload()
        assert_same(model(**inputs).logits, adapted)
        return
    assert model.merge_and_unload() is base
    assert_near(base(**inputs).logits, adapted)
    fresh = family.model().requires_grad_(False)
    fresh.load_state_dict(base.state_dict())
    assert_same(fresh(**inputs).logits, base(**inputs).logits)


def weights(base: nn.Module) -> dict[str, Tensor]:
    """A copy of all that the base model holds."""
    return {name: tensor.clone() for name, tensor in base.state_dict().items()}
