"""What `inspect` finds out, from a config alone, from a folder with weights and from a module."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, LlamaConfig, WhisperConfig

import graft
from conformance.families import FAMILIES
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


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_every_family_by_its_config_alone(tmp_path, name):
    (family,) = [family for family in FAMILIES if family.name == name]
    model = family.model()
    model.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = [type(model).__name__]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = inspect(tmp_path)
    assert found.model_class == type(model).__name__
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.task_type == family.task
    assert found.warnings == ()
    with_model = inspect(model)
    assert found.tree == with_model.tree
    assert [each.adapter for each in found.suggestions] == [
        each.adapter for each in with_model.suggestions
    ]


def test_a_model_of_no_task_is_the_class_that_its_config_names(tmp_path):
    config = WhisperConfig(encoder_layers=1, decoder_layers=1)
    config.architectures = ["WhisperForConditionalGeneration"]
    config.dtype = "float16"
    config.save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert found.model_class == "WhisperForConditionalGeneration"
    assert found.bytes == 2 * found.parameters
    with pytest.raises(CheckpointError, match="SEQ_2_SEQ_LM"):
        inspect(
            tmp_path, task_type="SEQ_2_SEQ_LM"
        )  # a task that no class of transformers has it for


def test_a_model_on_a_hub_by_its_config_and_then_by_its_weights(hugging_face, base_folder):
    files = {path.name: path.read_bytes() for path in base_folder.iterdir()}
    hugging_face.add("org/tiny", files)
    found = inspect("org/tiny", LoraConfig())
    assert found.source == "org/tiny"
    assert found.stored is None
    assert {path for path, count in hugging_face.served.items() if count} == {"config.json"}
    load_model("org/tiny", TaskType.CAUSAL_LM)  # the weights are in the cache now
    again = inspect("org/tiny", LoraConfig())
    assert again.stored is not None
    assert again.stored.missing == again.stored.unexpected == ()
    assert replace(again, stored=None) == found


# --- what is odd or wrong -------------------------------------------------------------------------


def write_config(folder: Path, **values: object) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_a_config_that_does_not_say_how_large_the_model_is(tmp_path):
    write_config(tmp_path, model_type="gpt2", n_embd=8, n_head=2, vocab_size=20)
    default = GPT2Config().n_layer
    assert inspect(tmp_path).warnings == (
        f"config.json does not say n_layer; {default} is the default of GPT2Config.",
    )


def test_a_config_whose_sizes_contradict_each_other(tmp_path):
    write_config(tmp_path, model_type="llama", hidden_size=30, num_attention_heads=7)
    with pytest.raises(CheckpointError, match=r"cannot be used: .*30.* not a multiple .*7"):
        inspect(tmp_path)
    write_config(tmp_path, model_type="llama", hidden_size="big")
    with pytest.raises(CheckpointError, match=r"'hidden_size' expected int, got str"):
        inspect(tmp_path)


def test_a_model_type_that_transformers_does_not_know(tmp_path):
    write_config(tmp_path, model_type="lama")
    with pytest.raises(CheckpointError, match=r"'lama'.*does not know.*llama"):
        inspect(tmp_path)


def test_a_model_that_brings_code_of_its_own(tmp_path):
    write_config(tmp_path, model_type="own", auto_map={"AutoConfig": "own.Config"})
    with pytest.raises(CheckpointError, match="brings code of its own, which graft does not run"):
        inspect(tmp_path)


def test_a_folder_that_is_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(CheckpointError, match=r"is an adapter, .* its base is org/base"):
        inspect(tmp_path)


def test_of_a_model_with_adapters_the_base_is_looked_at():
    model = PeftModel(tiny_llama(), LoraConfig(task_type="CAUSAL_LM"))
    assert inspect(model) == inspect(tiny_llama())


def test_what_is_no_model_and_no_config():
    with pytest.raises(ConfigError, match="ReLU has no parameters"):
        inspect(nn.ReLU())
    with pytest.raises(ConfigError, match="The config of a method is needed"):
        inspect(tiny_llama(), {"r": 3})


def test_a_file_is_no_folder(base_folder):
    with pytest.raises(ConfigError, match=r"is a file; give the folder"):
        inspect(base_folder / "config.json")


def test_a_config_that_is_not_json(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        inspect(tmp_path)


def test_what_is_no_model(base_folder, tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        inspect("./nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        inspect(tmp_path)
    with pytest.raises(ConfigError, match="CAUSAL_LM"):
        inspect(base_folder, task_type="CAUSAL")


def test_it_is_public():
    assert graft.inspect is inspect
