"""What is read off a base model's structure."""

from __future__ import annotations

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from conformance.families import FAMILIES
from graft.adapt.structure import (
    adaptable_layers,
    base_shape,
    head_paths,
    input_embeddings,
    is_causal,
    require_cache,
    tied_head,
)
from graft.config import TaskType
from graft.errors import ConfigError

MODELS = {family.name: family for family in FAMILIES}


@pytest.mark.parametrize(
    ("name", "causal"),
    [("Llama", True), ("GPT2", True), ("Bloom", True), ("Bert", False), ("T5", False)],
)
def test_who_sees_only_what_is_before(name, causal):
    assert is_causal(MODELS[name].model()) is causal


def test_an_encoder_that_is_set_to_be_a_decoder_is_one():
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        is_decoder=True,
    )
    assert is_causal(transformers.BertLMHeadModel(config))


def test_a_decoder_that_is_set_to_be_an_encoder_is_one():
    model = MODELS["Llama"].model()
    model.config.is_causal = False
    assert not is_causal(model)


def test_a_module_that_is_no_transformer_sees_everything():
    assert not is_causal(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bloom", "Bert", "T5"])
def test_shapes_of_virtual_tokens(name):
    model = MODELS[name].model()
    shape = base_shape(model, None)
    assert shape.hidden == 32
    assert shape.num_layers == 2
    assert shape.attention_heads == 4
    assert shape.num_heads == (2 if name == "Llama" else 4)
    assert shape.head_dim == 8
    assert shape.vocab_size == 64
    assert shape.submodules == (2 if name == "T5" else 1)
    ids = torch.tensor([3, 5, 9])
    embedded = shape.embed(ids)
    assert torch.equal(embedded, input_embeddings(model)(ids))
    assert not embedded.requires_grad
    cache = shape.key_values(ids)
    assert cache.shape == (2, 2, shape.num_heads, 3, 8)
    assert not cache.requires_grad


def test_key_values_are_the_models_own_and_leave_its_mode():
    model = MODELS["Llama"].model().train()
    ids = torch.tensor([3, 5, 9])
    found = base_shape(model, None).key_values(ids)
    assert model.training
    own = model.eval()(ids[None], use_cache=True).cache
    for layer, pair in zip(own.layers, found, strict=True):
        torch.testing.assert_close(pair[0], layer.keys[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(pair[1], layer.values[0], rtol=0, atol=1e-6)


def test_attention_with_one_head_of_keys():
    config = transformers.FalconConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        multi_query=True,
        new_decoder_architecture=False,
    )
    model = transformers.FalconForCausalLM(config)
    shape = base_shape(model, None)
    assert shape.num_heads == 1
    assert shape.key_values(torch.tensor([1, 2])).shape == (1, 2, 1, 2, 8)


def test_a_text_needs_a_tokenizer():
    model = MODELS["Llama"].model()
    with pytest.raises(ConfigError, match="needs tokenizer_name_or_path"):
        base_shape(model).tokenize("a text")


def test_the_options_of_a_tokenizer_reach_it(tmp_path):
    words = Tokenizer(models.WordLevel({"a": 0, "text": 1, "<s>": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(tmp_path)
    model = MODELS["Llama"].model()
    assert base_shape(model, str(tmp_path)).tokenize("text a text") == [1, 0, 1]
    options = {"extra_special_tokens": ["a text"], "trust_remote_code": True}
    assert base_shape(model, str(tmp_path), options).tokenize("text a text") == [1, 3]
    with pytest.raises(ConfigError, match=r"no folder .*nowhere"):
        base_shape(model, str(tmp_path / "nowhere")).tokenize("a text")


# --- heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task", "heads"),
    [
        ("Llama", TaskType.CAUSAL_LM, []),
        ("Llama", TaskType.SEQ_CLS, ["score"]),
        ("GPT2", TaskType.SEQ_CLS, ["score"]),
        ("Bert", TaskType.SEQ_CLS, ["classifier"]),
        ("Bert", TaskType.TOKEN_CLS, ["classifier"]),
        ("Bert", TaskType.QUESTION_ANS, ["qa_outputs"]),
        ("Bert", TaskType.FEATURE_EXTRACTION, []),
        ("T5", TaskType.SEQ_2_SEQ_LM, []),
        ("T5", TaskType.SEQ_CLS, ["classification_head"]),
        ("T5", TaskType.QUESTION_ANS, ["qa_outputs"]),
    ],
)
def test_a_new_head_is_what_stands_on_the_backbone(name, task, heads):
    assert head_paths(MODELS[name].model(task), task) == heads


def test_a_head_with_a_hidden_layer_is_trained_with_it():
    config = transformers.RobertaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
    )
    model = transformers.RobertaForSequenceClassification(config)
    assert head_paths(model, TaskType.SEQ_CLS) == ["classifier"]


def test_a_module_of_ones_own_has_heads_by_name():
    model = nn.ModuleDict({"body": nn.Linear(2, 3), "classifier": nn.Linear(3, 2)})
    assert head_paths(model, TaskType.SEQ_CLS) == ["classifier"]
    assert head_paths(model, None) == []


def test_a_head_that_shares_its_weight_with_the_embedding():
    assert tied_head(MODELS["Bloom"].model()).path == "lm_head"
    assert tied_head(MODELS["Llama"].model()) is None
    assert tied_head(MODELS["Bert"].model(TaskType.SEQ_CLS)) is None


# --- roles ----------------------------------------------------------------------------------------


def test_roles_in_a_decoder():
    roles = {path: view.role for path, view in adaptable_layers(MODELS["Llama"].model()).items()}
    first = "model.layers.0."
    assert {name: roles[f"{first}{name}"] for name in ("self_attn.q_proj", "self_attn.k_proj")} == {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
    }
    assert roles[f"{first}self_attn.v_proj"] == "value"
    assert roles[f"{first}self_attn.o_proj"] is None
    assert roles[f"{first}mlp.up_proj"] is None
    assert roles[f"{first}mlp.down_proj"] == "down"
    assert roles["lm_head"] is None
    assert roles["model.embed_tokens"] == "embedding"


def test_other_embeddings_have_no_role():
    roles = {path: view.role for path, view in adaptable_layers(MODELS["Bert"].model()).items()}
    assert roles["bert.embeddings.word_embeddings"] == "embedding"
    assert roles["bert.embeddings.position_embeddings"] is None


def test_layers_with_heads_of_their_own_sizes_take_prompts_but_no_prefix():
    config = transformers.Gemma4TextConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        global_head_dim=16,
        vocab_size_per_layer_input=32,
        hidden_size_per_layer_input=4,
    )
    with torch.device("meta"):
        model = transformers.Gemma4ForCausalLM(config)
    assert len({model.model.layers[i].self_attn.q_proj.out_features for i in range(6)}) == 2
    assert base_shape(model).hidden == 16
    with pytest.raises(ConfigError, match="layers that differ in head_dim"):
        require_cache(model)


def test_a_model_without_attention_takes_prompts():
    config = transformers.MambaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4
    )
    with torch.device("meta"):
        model = transformers.MambaForCausalLM(config)
    assert (base_shape(model).hidden, base_shape(model).vocab_size) == (16, 32)
    with pytest.raises(ConfigError, match="a prefix has no place"):
        require_cache(model)


def test_a_model_of_parts_that_counts_no_layers_takes_no_prompts():
    with torch.device("meta"):
        model = transformers.BltForCausalLM(transformers.BltConfig())
    with pytest.raises(ConfigError, match="BltForCausalLM says no number of layers"):
        base_shape(model)


def test_a_model_that_reads_no_tokens_takes_no_prompts():
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig())
    with pytest.raises(ConfigError, match=r"its input goes through a Conv1d"):
        base_shape(model)
