"""From a config to the modules of one adapter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conformance.families import FAMILIES
from graft.adapt.adapter import adapter_tensors, build_adapter, set_adapter_tensors
from graft.config import TaskType
from graft.errors import ConfigError, TargetError
from graft.methods import IA3Config, LoraConfig, PromptTuningConfig

MODELS = {family.name: family for family in FAMILIES}


def test_the_tree_mirrors_the_base_model():
    adapter = build_adapter(MODELS["Llama"].model(), LoraConfig(target_modules=["q_proj"]))
    assert sorted(dict(adapter.named_parameters())) == [
        f"tree.model.layers.{i}.self_attn.q_proj.lora_{part}" for i in (0, 1) for part in "AB"
    ]


def test_building_does_not_touch_the_base_model():
    model = MODELS["Llama"].model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    build_adapter(model, LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"]))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "forward" not in vars(model.lm_head)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_was_left_open_is_said_in_the_resolved_config():
    model = MODELS["Llama"].model()
    model.name_or_path = "org/small-llama"
    config = build_adapter(model, IA3Config(task_type="CAUSAL_LM")).config
    assert config.target_modules == ["k_proj", "v_proj", "down_proj"]
    assert config.feedforward_modules == ["down_proj"]
    assert config.base_model_name_or_path == "org/small-llama"
    said = LoraConfig(target_modules=["q_proj"], base_model_name_or_path="other/base")
    assert build_adapter(model, said).config.base_model_name_or_path == "other/base"
    assert build_adapter(MODELS["GPT2"].model(), LoraConfig()).config.fan_in_fan_out
    assert not build_adapter(model, LoraConfig()).config.fan_in_fan_out


@pytest.mark.parametrize(
    ("name", "submodules", "heads"), [("Llama", 1, 4), ("T5", 2, 4)], ids=["Llama", "T5"]
)
def test_sizes_of_virtual_tokens_are_filled_in(name, submodules, heads):
    family = MODELS[name]
    config = PromptTuningConfig(task_type=family.task, num_virtual_tokens=3)
    resolved = build_adapter(family.model(), config).config
    assert resolved.token_dim == 32
    assert resolved.num_layers == 2
    assert resolved.num_attention_heads == heads
    assert resolved.num_transformer_submodules == submodules


def test_virtual_tokens_need_a_task_and_a_transformer():
    config = PromptTuningConfig(num_virtual_tokens=3)
    with pytest.raises(ConfigError, match="PromptTuningConfig needs task_type, such as"):
        build_adapter(MODELS["Llama"].model(), config)
    with pytest.raises(ConfigError, match=r"Linear has no input embeddings.*LoRA, IA3 and BitFit"):
        build_adapter(nn.Linear(2, 2), config.changed(task_type=TaskType.CAUSAL_LM))


# --- modules trained whole ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task", "head"),
    [
        ("Bert", TaskType.SEQ_CLS, "classifier"),
        ("Bert", TaskType.TOKEN_CLS, "classifier"),
        ("Bert", TaskType.QUESTION_ANS, "qa_outputs"),
        ("Llama", TaskType.SEQ_CLS, "score"),
    ],
)
def test_a_new_head_is_trained_whole(name, task, head):
    adapter = build_adapter(MODELS[name].model(task), LoraConfig(task_type=task))
    assert list(adapter.saved) == [head]
    assert adapter.config.modules_to_save == [head]


def test_a_pretrained_head_is_not():
    adapter = build_adapter(MODELS["Llama"].model(), LoraConfig(task_type="CAUSAL_LM"))
    assert adapter.saved == {}
    assert adapter.config.modules_to_save is None


def test_modules_are_saved_by_suffix():
    model = MODELS["Llama"].model()
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "0.mlp.up_proj"])
    adapter = build_adapter(model, config)
    assert list(adapter.saved) == ["lm_head", "model.layers.0.mlp.up_proj"]
    copy = adapter.saved["lm_head"]
    assert copy is not model.lm_head
    assert torch.equal(copy.weight, model.lm_head.weight)


def test_a_module_to_save_that_is_not_there_is_refused_with_the_nearest():
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lmhead"])
    with pytest.raises(TargetError, match=r"'lmhead' matches no module\. Did you mean lm_head"):
        build_adapter(MODELS["Llama"].model(), config)
    # PEFT writes both names of heads, whichever the model has.
    both = LoraConfig(target_modules=["query"], modules_to_save=["classifier", "score"])
    adapter = build_adapter(MODELS["Bert"].model(TaskType.SEQ_CLS), both)
    assert list(adapter.saved) == ["classifier"]


def test_what_is_saved_whole_is_no_target():
    config = LoraConfig(target_modules="all-linear", modules_to_save=["down_proj"])
    adapter = build_adapter(MODELS["Llama"].model(), config)
    assert not any("down_proj" in path for path in adapter.layers)


# --- token rows -----------------------------------------------------------------------------------


def test_token_rows_beside_the_targets_and_at_a_tied_head():
    family = MODELS["Bloom"]  # its head is tied to the embedding
    config = LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=[1, 5])
    adapter = build_adapter(family.model(), config)
    rows = [path for path, layer in adapter.layers.items() if hasattr(layer, "indices")]
    assert rows == ["transformer.word_embeddings", "lm_head"]
    keys = [key for key in adapter_tensors(adapter) if "token_adapter" in key]
    assert keys == [
        "base_model.model.transformer.word_embeddings.token_adapter.trainable_tokens_delta"
    ]
    untied = build_adapter(MODELS["Llama"].model(), config)
    assert [p for p, layer in untied.layers.items() if hasattr(layer, "indices")] == [
        "model.embed_tokens"
    ]


def test_an_update_of_the_embedding_does_not_reach_a_tied_head():
    config = LoraConfig(target_modules=["word_embeddings"])  # as in PEFT
    adapter = build_adapter(MODELS["Bloom"].model(), config)
    assert list(adapter.layers) == ["transformer.word_embeddings"]


def test_token_rows_of_no_embedding_are_refused():
    model = MODELS["Llama"].model()
    named = LoraConfig(trainable_token_indices={"embed_token": [1]})
    with pytest.raises(TargetError, match=r"trainable_token_indices: 'embed_token'.*embed_tokens"):
        build_adapter(model, named)
    target = LoraConfig(target_modules=["embed_tokens"], trainable_token_indices=[1])
    with pytest.raises(TargetError, match="is a target or saved whole already"):
        build_adapter(model, target)


# --- tensors --------------------------------------------------------------------------------------


def test_tensors_go_in_as_they_come_out():
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], use_dora=True)
    first, second = (build_adapter(MODELS["Bert"].model(TaskType.SEQ_CLS), config) for _ in "ab")
    tensors = {key: torch.randn_like(tensor) for key, tensor in adapter_tensors(first).items()}
    set_adapter_tensors(second, tensors, None)
    after = adapter_tensors(second)
    assert list(after) == list(tensors)
    assert all(torch.equal(after[key], tensors[key]) for key in tensors)
