from __future__ import annotations

import torch

import graft
from conformance.families import FAMILIES, VOCAB


def test_router_logits_are_of_the_rows_given():
    """They come flat, rows and tokens in one axis: in the rows' order, without virtual tokens."""
    family = next(f for f in FAMILIES if f.name == "Mixtral")
    model = graft.get_peft_model(
        family.model(), graft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False), "lora"
    ).eval()
    prompt = graft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model.add_adapter("prompt", prompt)
    rows, names = torch.randint(3, VOCAB, (4, 5)), ["lora", "__base__", "prompt", "lora"]
    mixed = model(input_ids=rows, adapter_names=names, output_router_logits=True).router_logits
    for index, name in enumerate(names):
        alone = model(
            input_ids=rows[index : index + 1], adapter_names=[name], output_router_logits=True
        ).router_logits
        for layer, own in zip(mixed, alone, strict=True):
            assert own.shape[0] == 5
            torch.testing.assert_close(layer.view(4, 5, -1)[index], own, atol=1e-5, rtol=0)
