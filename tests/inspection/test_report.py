"""What `inspect` finds out, from a config alone, from a folder with weights and from a module."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig

import graft
from graft import (
    BitFitConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
)
from graft.errors import CheckpointError, ConfigError, TargetError
from graft.hub import load_model
from graft.inspection import Node, inspect, module_tree
from tiny import make_tokenizer, tiny_llama


def at(node: Node, *names: str) -> Node:
    for name in names:
        (node,) = [child for child in node.children if child.name == name]
    return node


# --- what a config hits and costs -------------------------------------------------------------

CONFIGS = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear"),
    "dora": LoraConfig(task_type="CAUSAL_LM", r=3, use_dora=True),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
    "bitfit": BitFitConfig(task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p_tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "projected": PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True
    ),
    "classes": LoraConfig(task_type="SEQ_CLS"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_figures_are_those_of_the_adapter_itself(base_folder, tmp_path, name):
    """From the config alone, what attaching and saving then does with the weights."""
    config = CONFIGS[name]
    shutil.copy(base_folder / "config.json", tmp_path)
    found = inspect(tmp_path, config)

    base = load_model(str(base_folder), config.task_type)
    parameters = list(base.parameters())
    assert found.model_class == type(base).__name__
    assert found.parameters == sum(p.numel() for p in parameters)
    assert found.bytes == sum(p.numel() * p.element_size() for p in parameters)
    assert replace(found, source=None) == inspect(base, config)

    model = PeftModel(base, config)
    trainable, _ = model.get_nb_trainable_parameters()
    assert found.adapter is not None
    assert found.adapter.trainable_parameters == found.tree.added == trainable
    hit = {path for pattern in found.adapter.patterns for path in pattern.layers}
    assert hit == set(model.sites)
    model.save_pretrained(tmp_path / "saved")
    files = list((tmp_path / "saved").glob("*.safetensors"))
    on_disk = sum(path.stat().st_size for path in files)
    headers = sum(int.from_bytes(path.read_bytes()[:8], "little") + 8 for path in files)
    assert found.adapter.bytes_on_disk == on_disk - headers


def test_each_pattern_and_what_it_leaves_out():
    model = tiny_llama()
    layers = ["model.layers.0", "model.layers.1"]
    found = inspect(model, LoraConfig(target_modules=["q_proj", "mlp.up_proj"])).adapter
    assert found is not None
    assert [(p.pattern, list(p.layers)) for p in found.patterns] == [
        ("q_proj", [f"{layer}.self_attn.q_proj" for layer in layers]),
        ("mlp.up_proj", [f"{layer}.mlp.up_proj" for layer in layers]),
    ]
    others = ["self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    others += ["mlp.gate_proj", "mlp.down_proj"]
    linear = {f"{layer}.{name}" for layer in layers for name in others}
    assert set(found.not_hit) == {*linear, "model.embed_tokens", "lm_head"}
    assert found.method == "lora"


def test_a_regular_expression_is_one_pattern():
    pattern = r".*\.0\.self_attn\.(q|v)_proj"
    found = inspect(tiny_llama(), LoraConfig(target_modules=pattern)).adapter
    assert found is not None
    (hits,) = found.patterns
    assert hits.pattern == pattern
    assert hits.layers == ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def test_a_choice_left_open_is_shown_as_it_was_made():
    found = inspect(tiny_llama(), LoraConfig()).adapter
    assert found is not None
    assert [pattern.pattern for pattern in found.patterns] == ["q_proj", "v_proj"]


def test_a_new_head_is_trained_whole(base_folder):
    found = inspect(base_folder, LoraConfig(), task_type="SEQ_CLS")
    assert found.adapter is not None
    assert found.adapter.saved_modules == ("score",)
    assert "score" not in found.adapter.not_hit
    assert at(found.tree, "score").added == 2 * 16


def test_the_model_is_left_as_it_was():
    model = tiny_llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(7)
    numbers = torch.rand(3)
    torch.manual_seed(7)
    inspect(model, LoraConfig(init_lora_weights=False))
    assert torch.equal(torch.rand(3), numbers)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_without_a_config_there_is_the_model_alone():
    found = inspect(tiny_llama())
    assert found.adapter is None
    assert found.tree == module_tree(tiny_llama())


def test_targets_that_match_nothing_are_named_with_their_neighbours():
    with pytest.raises(TargetError, match=r"'q_prj' matches no.*q_proj"):
        inspect(tiny_llama(), LoraConfig(target_modules=["q_prj"]))


# --- from a config alone ----------------------------------------------------------------------


def test_a_large_model_takes_no_memory(tmp_path):
    """8 billion parameters in bf16: 16 GB, were they made."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    found = inspect(tmp_path, LoraConfig(r=16, target_modules="all-linear"))
    assert found.parameters == 8_030_261_248  # the published size of Llama 3.1 8B
    assert found.bytes == 2 * found.parameters
    sizes = {"q": 4096 + 4096, "k": 4096 + 1024, "v": 4096 + 1024, "o": 4096 + 4096}
    sizes |= dict.fromkeys(("gate", "up", "down"), 4096 + 14336)
    assert found.adapter is not None
    assert found.adapter.trainable_parameters == 32 * 16 * sum(sizes.values())
    assert found.adapter.bytes_on_disk == 4 * found.adapter.trainable_parameters  # fp32
    assert at(found.tree, "model", "layers", "0-31").count == 32


@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_a_task_left_open_is_the_models(base_folder, kind):
    found = inspect(base_folder, kind(num_virtual_tokens=4))
    assert found.model_class == "LlamaForCausalLM"
    assert found.adapter is not None
    assert found.adapter.virtual_tokens == 4
    assert found.adapter.patterns == found.adapter.not_hit == ()


def test_an_encoder(tmp_path):
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
    )
    BertModel(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert inspect(tmp_path).model_class == "BertModel"
    found = inspect(tmp_path, LoraConfig(), TaskType.TOKEN_CLS)
    assert found.model_class == "BertForTokenClassification"
    assert found.adapter is not None
    assert found.adapter.saved_modules == ("classifier",)


def test_what_is_no_model(base_folder, tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        inspect("./nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        inspect(tmp_path)
    with pytest.raises(ConfigError, match="CAUSAL_LM"):
        inspect(base_folder, task_type="CAUSAL")


def test_it_is_public():
    assert graft.inspect is inspect
