from __future__ import annotations

import pytest
import torch

from conformance.families import FAMILIES
from graft import (
    IA3Config,
    LoraConfig,
    PromptEncoderConfig,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from graft.errors import CheckpointError, ConfigError

LLAMA = FAMILIES[0]
IDS = torch.tensor([[5, 9, 33], [7, 2, 60]])


def test_values_can_come_from_elsewhere():
    model = get_peft_model(LLAMA.model(), LoraConfig(target_modules=["q_proj"], use_dora=True))
    before = {key: tensor.clone() for key, tensor in get_peft_model_state_dict(model).items()}
    ones = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    found = get_peft_model_state_dict(model, ones)
    assert found.keys() == before.keys()
    assert all((tensor == 1).all() for tensor in found.values())
    after = get_peft_model_state_dict(model)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_adapters_are_named():
    model = get_peft_model(LLAMA.model(), LoraConfig(target_modules=["q_proj"]), "low")
    model.add_adapter("factors", IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    assert all("lora" in key for key in get_peft_model_state_dict(model, adapter_name="low"))
    factors = get_peft_model_state_dict(model, adapter_name="factors")
    assert all(key.endswith("k_proj.ia3_l") for key in factors)
    set_peft_model_state_dict(model, {k: 2 * v for k, v in factors.items()}, "factors")
    assert all((layer.ia3_l == 2).all() for layer in model.adapter("factors").layers.values())
    with pytest.raises(ConfigError, match="no adapter 'default'"):
        get_peft_model_state_dict(model)


def test_a_state_dict_is_taken_whole_or_not_at_all():
    model = get_peft_model(LLAMA.model(), LoraConfig(target_modules=["q_proj"]))
    state = get_peft_model_state_dict(model)
    key = next(iter(state))
    with pytest.raises(CheckpointError, match="The state dict lacks"):
        set_peft_model_state_dict(model, {k: v for k, v in state.items() if k != key})
    with pytest.raises(CheckpointError, match=r"The state dict: the tensor 'lora\.x' has no home"):
        set_peft_model_state_dict(model, {**state, "lora.x": state[key]})


def test_an_encoder_stays_if_it_makes_the_vectors():
    config = PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(LLAMA.model(), config)
    virtual = model.adapter("default").virtual_tokens
    state = get_peft_model_state_dict(model)
    set_peft_model_state_dict(model, state)
    assert virtual.encoder is not None
    set_peft_model_state_dict(model, {key: tensor + 1 for key, tensor in state.items()})
    assert virtual.is_fixed
    torch.testing.assert_close(virtual.rows(), state["prompt_embeddings"] + 1)
    with pytest.raises(CheckpointError, match="lacks 'prompt_embeddings'"):
        set_peft_model_state_dict(model, {})


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_quantised_base_is_frozen_and_nothing_is_cast(checkpointing):
    base = LLAMA.model().bfloat16()
    prepared = prepare_model_for_kbit_training(base, use_gradient_checkpointing=checkpointing)
    assert prepared is base
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert {parameter.dtype for parameter in base.parameters()} == {torch.bfloat16}
    assert base.is_activation_checkpointing is checkpointing
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM")).train()
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.adapter("default").parameters())
