"""Hooks of virtual tokens: attention that loses a prefix, forwards that are replaced."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, MistralConfig, MistralForCausalLM

from graft import PrefixTuningConfig, get_peft_model
from graft.errors import ConfigError

SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def test_flash_attention_hides_a_prefix_behind_a_window():
    base = MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=4))
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(base, config)
    within, beyond = torch.ones(1, 2, dtype=torch.long), torch.ones(1, 3, dtype=torch.long)
    wanted = model(within).logits
    base.config._attn_implementation = "flash_attention_2"  # not there, so it may make masks alone
    with pytest.raises(ConfigError, match="out of this model's attention window under flash_att"):
        model(beyond)
    base.config._attn_implementation = "sdpa"
    assert torch.equal(model(within).logits, wanted)


def test_a_forward_that_was_replaced_is_put_back():
    base = BertForTokenClassification(BertConfig(**SIZES, max_position_embeddings=16)).eval()
    table = base.bert.embeddings.position_embeddings
    calls = []

    def replaced(positions: torch.Tensor) -> torch.Tensor:  # as accelerate's hooks do
        calls.append(positions)
        return torch.nn.functional.embedding(positions, table.weight)

    table.forward = replaced
    config = PrefixTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=2)
    model = get_peft_model(base, config)
    calls.clear()
    ids = torch.arange(1, 4).expand(2, 3)
    model(ids, adapter_names=["default", "__base__"])
    assert table.forward is replaced
    assert [call.tolist() for call in calls] == [[[2, 3, 4], [0, 1, 2]]]
