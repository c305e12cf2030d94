"""Folding adapters into a model's weights, for a time or for good."""

from __future__ import annotations

import pytest
import torch

from conformance.families import FAMILIES
from graft import (
    BitFitConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from graft.config import TaskType
from graft.errors import ConfigError, MergeError

MODELS = {family.name: family for family in FAMILIES}
IDS = torch.tensor([[5, 9, 33], [7, 2, 60]])


def lora(*names: str, **values) -> LoraConfig:
    chosen = list(names) or ["q_proj"]
    return LoraConfig(
        task_type="CAUSAL_LM", target_modules=chosen, init_lora_weights=False, **values
    )


def attach(config, name: str = "Llama", task: TaskType | None = None) -> PeftModel:
    return get_peft_model(MODELS[name].model(task), config).eval()


def test_what_is_merged_stays_until_it_is_unmerged():
    model = attach(lora("q_proj"))
    model.add_adapter("second", lora("q_proj", "v_proj"))
    before = {name: value.clone() for name, value in model.base_model.state_dict().items()}
    model.merge_adapter()
    assert model.merged_adapters == ["default"]
    model.merge_adapter(["default", "second"])  # what is merged already stays
    assert model.merged_adapters == ["default", "second"]
    model.unmerge_adapter()
    assert model.merged_adapters == []
    after = model.base_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_virtual_tokens_are_not_merged():
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = attach(config)
    model.add_adapter("low", lora())
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=r"'default' is PROMPT_TUNING: virtual tokens are inp"):
            merge(["low", "default"])
    assert model.merged_adapters == []  # not half of them
    assert set(model.adapters) == {"default", "low"}


def test_rows_without_a_merged_adapter_cannot_be_had():
    model = attach(lora())
    model.merge_adapter()
    with pytest.raises(MergeError, match=r"'default' is merged .*rows without it cannot be had"):
        model(IDS, adapter_names=["default", "__base__"])
    both = model(IDS, adapter_names=["default", "default"]).logits
    torch.testing.assert_close(both, model(IDS).logits, rtol=0, atol=0)


def test_a_bias_without_a_place_is_not_merged_for_good():
    model = attach(BitFitConfig(task_type="CAUSAL_LM"))
    layers = model.adapter("default").layers.values()
    for layer in layers:
        torch.nn.init.normal_(layer.beft_bias)
    adapted = model(IDS).logits
    with pytest.raises(MergeError, match=r"a bias, and a LlamaForCausalLM has no place for one"):
        model.merge_and_unload()
    torch.testing.assert_close(model(IDS).logits, adapted, rtol=0, atol=0)
    model.merge_adapter()  # for a time it can be
    torch.testing.assert_close(model(IDS).logits, adapted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert", "T5"])
def test_the_plain_model_has_its_own_class_names_and_no_hooks(name):
    family = MODELS[name]
    base = family.model()
    config = IA3Config(task_type=family.task, init_ia3_weights=False)
    model = get_peft_model(base, config).eval()
    merged = model.merge_and_unload()
    plain = family.model()
    assert merged is base
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert [n for n, _ in merged.named_modules()] == [n for n, _ in plain.named_modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in merged.modules())
    assert list(model.adapters) == []
    changed = merged.state_dict()
    assert any(not torch.equal(changed[key], value) for key, value in plain.state_dict().items())


def test_a_head_is_taken_over():
    config = LoraConfig(task_type="SEQ_CLS", init_lora_weights=False)
    model = attach(config, "Bert", TaskType.SEQ_CLS)
    torch.nn.init.normal_(model.adapter("default").saved["classifier"].weight)
    adapted = model(IDS).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, adapted, rtol=0, atol=1e-5)
    assert "forward" not in vars(merged.classifier)


def test_only_the_named_adapters_are_folded_in():
    model = attach(lora())
    model.add_adapter("second", lora("v_proj"))
    model.set_adapter("second")
    adapted = model(IDS).logits
    merged = model.merge_and_unload(adapter_names=["second"])
    torch.testing.assert_close(merged(IDS).logits, adapted, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="no adapter"):
        attach(lora()).merge_and_unload(adapter_names=["nobody"])


def test_unloading_gives_the_base_model_back_even_when_merged():
    family = MODELS["Llama"]
    plain = family.model()(IDS).logits
    model = attach(lora(modules_to_save=["lm_head"]))
    model.add_adapter("soft", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    model.merge_adapter()
    base = model.unload()
    assert torch.equal(base(IDS).logits, plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())
    assert list(model.adapters) == []


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_what_is_tied_to_a_module_that_is_taken_over_stays(name):
    model = attach(lora(modules_to_save=[name]), "Gemma2")
    assert model.base_model.lm_head.weight is model.base_model.model.embed_tokens.weight
    for copy in model.adapter("default").saved.values():
        torch.nn.init.normal_(copy.weight)
    adapted = model(IDS).logits
    torch.testing.assert_close(model.merge_and_unload()(IDS).logits, adapted, rtol=0, atol=1e-5)
