"""What is saved and loaded is the same, bit for bit; what the caller gave is not changed."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from graft.adapt.functional import get_peft_model_state_dict, set_peft_model_state_dict
from graft.adapt.model import PeftModel, get_peft_model

from .cases import Case
from .families import Family
from .rows import assert_same, attach, batch, make_rows, train


@torch.no_grad()
def test_saved_and_loaded(family: Family, case: Case, tmp_path: Path) -> None:
    inputs = batch(family, make_rows(3))
    model = attach(family.model(), family, [case])
    wanted = model(**inputs).logits
    model.save_pretrained(tmp_path)
    folder = tmp_path / case.name
    loaded = PeftModel.from_pretrained(family.model(), folder)
    assert_same(loaded(**inputs).logits, wanted)
    assert not any(p.requires_grad for p in loaded.parameters())
    goes_on = PeftModel.from_pretrained(family.model(), folder, is_trainable=True)
    assert_same(goes_on(**inputs).logits, wanted)
    shapes = {n: p.shape for n, p in model.adapter(case.name).named_parameters()}
    assert {n: p.shape for n, p in goes_on.adapter("default").named_parameters()} == shapes
    loaded.save_pretrained(tmp_path / "again")
    saved, again = (
        (path / "adapter_model.safetensors").read_bytes() for path in (folder, tmp_path / "again")
    )
    assert saved == again


@torch.no_grad()
def test_state_dicts_and_copies(family: Family, case: Case) -> None:
    inputs = batch(family, make_rows(3))
    config = case.config(family)
    given = copy.deepcopy(config)
    model = get_peft_model(family.model(), config)
    assert config == given
    other = get_peft_model(family.model(), config)  # of the same config
    assert config == given
    train(model, "default")
    wanted = model(**inputs).logits
    assert_same(copy.deepcopy(model)(**inputs).logits, wanted)
    other.load_state_dict(model.state_dict())
    assert_same(other(**inputs).logits, wanted)
    third = get_peft_model(family.model(), config)
    tensors = get_peft_model_state_dict(model)
    if case.at_layers or model.adapter("default").virtual_tokens.encoder is None:
        set_peft_model_state_dict(third, tensors)
        assert_same(third(**inputs).logits, wanted)
    assert_same(get_peft_model_state_dict(other), tensors)


def test_a_copy_is_a_model_of_its_own(family: Family, case: Case) -> None:
    inputs = batch(family, make_rows(2))
    model = attach(family.model(), family, [case])
    wanted = model(**inputs).logits
    copied = copy.deepcopy(model)
    train(copied, case.name)
    assert_same(model(**inputs).logits, wanted)
    assert not torch.allclose(copied(**inputs).logits, wanted, atol=1e-3)
