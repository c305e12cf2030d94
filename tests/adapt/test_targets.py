"""From names and patterns to layers; what matches nothing is an error with the nearest names."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from conformance.families import FAMILIES
from graft.adapt.structure import adaptable_layers
from graft.adapt.targets import find_targets, shortest_names
from graft.config import TaskType
from graft.errors import TargetError
from graft.methods import IA3, BitFit, BitFitConfig, IA3Config, LoraConfig
from graft.methods.lora import Lora

MODELS = {family.name: family for family in FAMILIES}


@pytest.fixture
def llama() -> nn.Module:
    return MODELS["Llama"].model()


def lora_paths(model: nn.Module, **values) -> list[str]:
    return [view.path for view in find_targets(model, LoraConfig(**values), Lora).layers]


def layer(*names: str, layers: tuple[int, ...] = (0, 1)) -> list[str]:
    """Paths of Llama's projections, in the order of the model."""
    return [f"model.layers.{i}.{name}" for i in layers for name in names]


# --- names ----------------------------------------------------------------------------------------


def test_names_are_suffixes(llama):
    assert lora_paths(llama, target_modules=["q_proj"]) == layer("self_attn.q_proj")
    assert lora_paths(llama, target_modules=["layers.1.self_attn.q_proj", "up_proj"]) == [
        *layer("mlp.up_proj", layers=(0,)),
        *layer("self_attn.q_proj", "mlp.up_proj", layers=(1,)),
    ]
    assert lora_paths(llama, target_modules=["lm_head"]) == ["lm_head"]


def test_a_name_that_matches_nothing_is_refused_with_the_nearest(llama):
    with pytest.raises(TargetError, match=r"'v_porj' matches no layer.* Did you mean v_proj"):
        lora_paths(llama, target_modules=["q_proj", "v_porj"])


def test_a_name_of_what_cannot_be_adapted_is_refused(llama):
    with pytest.raises(TargetError, match=r"'self_attn' matches .*, a LlamaAttention; Lora adapts"):
        lora_paths(llama, target_modules=["self_attn"])
    with pytest.raises(TargetError, match=r"a LlamaRMSNorm"):
        lora_paths(llama, target_modules=["q_proj", "input_layernorm"])
    with pytest.raises(TargetError, match=r"IA3 adapts conv, conv1d, linear"):
        find_targets(llama, IA3Config(target_modules=["embed_tokens"]), IA3)


def test_what_is_trained_whole_is_no_target():
    model = MODELS["Bert"].model(TaskType.SEQ_CLS)
    heads = ["classifier", "bert.pooler"]
    for wanted in ("all-linear", ["dense"], ".*"):
        found = find_targets(model, LoraConfig(target_modules=wanted), Lora, heads)
        views = [*found.layers, *found.others]
        assert found.layers
        assert not any(view.path.startswith(("classifier", "bert.pooler")) for view in views)
    with pytest.raises(TargetError, match="'classifier', which is trained whole as it is"):
        find_targets(model, LoraConfig(target_modules=["classifier"]), Lora, heads)


# --- patterns -------------------------------------------------------------------------------------


def test_a_string_is_a_pattern_for_the_whole_path(llama):
    found = lora_paths(llama, target_modules=r".*\.1\..*\.(q|k)_proj")
    assert found == layer("self_attn.q_proj", "self_attn.k_proj", layers=(1,))


def test_a_pattern_that_matches_nothing_is_refused(llama):
    with pytest.raises(TargetError, match=r"must match a whole path, .*give a list: \['q_proj'\]"):
        lora_paths(llama, target_modules="q_proj")
    with pytest.raises(
        TargetError, match=r"'model.layers.0.self_attn.q_proj'; .* Put `\.\*` in front"
    ):
        lora_paths(llama, target_modules="q_proj")
    with pytest.raises(TargetError, match=r"'\.\*\(q_proj\|v_proj\)' matches 4 paths\.$"):
        lora_paths(llama, target_modules="q_proj|v_proj")  # is no name, so there is no list of it
    with pytest.raises(TargetError, match="is not a regular expression"):
        lora_paths(llama, target_modules="(q_proj")


# --- all linear layers ----------------------------------------------------------------------------


def test_all_linear_is_every_linear_layer_but_the_output_head(llama):
    found = lora_paths(llama, target_modules="all-linear")
    every = [path for path, module in llama.named_modules() if isinstance(module, nn.Linear)]
    assert found == [path for path in every if path != "lm_head"]
    gpt2 = MODELS["GPT2"].model()
    found = lora_paths(gpt2, target_modules="all-linear")
    assert found == [path for path, module in gpt2.named_modules() if isinstance(module, Conv1D)]


def test_all_linear_needs_a_linear_layer():
    with pytest.raises(TargetError, match="found no linear layer"):
        lora_paths(nn.Sequential(nn.Embedding(3, 2)), target_modules="all-linear")


def test_all_linear_on_any_module():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert lora_paths(model, target_modules="all-linear") == ["0", "2"]
    assert lora_paths(model, target_modules=["2"]) == ["2"]


# --- chosen from the structure --------------------------------------------------------------------

# Names of the projections per architecture: query and value (or fused), key, back from the
# feed-forward. These are facts of transformers' classes, looked up in their source.
ARCHITECTURES = {
    "Llama": ({"q_proj", "v_proj"}, {"k_proj"}, {"down_proj"}, {}),
    "Mistral": ({"q_proj", "v_proj"}, {"k_proj"}, {"down_proj"}, {}),
    "Qwen2": ({"q_proj", "v_proj"}, {"k_proj"}, {"down_proj"}, {}),
    "Qwen3": ({"q_proj", "v_proj"}, {"k_proj"}, {"down_proj"}, {"head_dim": 8}),
    "Gemma2": ({"q_proj", "v_proj"}, {"k_proj"}, {"down_proj"}, {"head_dim": 8}),
    "Phi": ({"q_proj", "v_proj"}, {"k_proj"}, {"fc2"}, {}),
    "Phi3": ({"qkv_proj"}, set(), {"down_proj"}, {"pad_token_id": 0}),
    "Olmo2": ({"q_proj", "v_proj"}, {"k_proj"}, {"down_proj"}, {}),
    "Granite": ({"q_proj", "v_proj"}, {"k_proj"}, {"down_proj"}, {}),
    "GPT2": ({"c_attn"}, set(), {"mlp.c_proj"}, {}),
    "GPTNeo": (
        {"q_proj", "v_proj"},
        {"k_proj"},
        {"c_proj"},
        {"attention_types": [[["global"], 2]]},
    ),
    "GPTNeoX": ({"query_key_value"}, set(), {"dense_4h_to_h"}, {}),
    "GPTJ": ({"q_proj", "v_proj"}, {"k_proj"}, {"fc_out"}, {"rotary_dim": 4}),
    "Bloom": ({"query_key_value"}, set(), {"dense_4h_to_h"}, {}),
    "Falcon": ({"query_key_value"}, set(), {"dense_4h_to_h"}, {}),
    "OPT": ({"q_proj", "v_proj"}, {"k_proj"}, {"fc2"}, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Bert": ({"query", "value"}, {"key"}, {"output.dense"}, {}),
    "Roberta": ({"query", "value"}, {"key"}, {"output.dense"}, {}),
    "Electra": ({"query", "value"}, {"key"}, {"output.dense"}, {}),
    "DebertaV2": ({"query_proj", "value_proj"}, {"key_proj"}, {"output.dense"}, {}),
    "DistilBert": ({"q_lin", "v_lin"}, {"k_lin"}, {"lin2"}, {"dim": 32, "hidden_dim": 48}),
    "T5": ({"q", "v"}, {"k"}, {"wo"}, {"d_ff": 48, "d_kv": 8}),
    "Bart": (
        {"q_proj", "v_proj"},
        {"k_proj"},
        {"fc2"},
        {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    ),
    "Whisper": (
        {"q_proj", "v_proj"},
        {"k_proj"},
        {"fc2"},
        {
            "d_model": 32,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_attention_heads": 4,
            "decoder_start_token_id": 1,
        },
    ),
}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def make_skeleton(name: str, settings: dict) -> nn.Module:
    """The architecture without weights."""
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings})
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config)


def is_one_of(path: str, names: set[str]) -> bool:
    return any(path.endswith(f".{name}") for name in names)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_targets_are_found_without_a_table_of_architectures(name):
    attention, keys, down, settings = ARCHITECTURES[name]
    model = make_skeleton(name, settings)
    every = [path for path, view in adaptable_layers(model).items() if view.kind != "norm"]

    def named(names: set[str]) -> set[str]:
        found = {path for path in every if is_one_of(path, names)}
        return {path for path in found if "attention.output" not in path}  # BERT's other dense

    assert set(lora_paths(model)) == named(attention)
    values = {n for n in attention if n.startswith("v") or len(attention) == 1}
    ia3 = find_targets(model, IA3Config(), IA3)
    assert {view.path for view in ia3.layers} == named(values | keys | down)
    assert {view.path for view in ia3.layers if view.role == "down"} == named(down)


def test_a_model_without_such_projections_needs_names():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(TargetError, match=r"No layer of Sequential looks like .*; say target_mod"):
        lora_paths(model)


@pytest.mark.parametrize("name", ["GPT2", "Bert"])
def test_bitfit_takes_every_layer_with_a_bias(name):
    model = MODELS[name].model()
    found = {view.path for view in find_targets(model, BitFitConfig(), BitFit).layers}
    assert found == {n.removesuffix(".bias") for n, _ in model.named_parameters() if "bias" in n}


def test_bitfit_takes_linear_layers_where_there_are_no_biases(llama):
    found = find_targets(llama, BitFitConfig(), BitFit)
    assert [view.path for view in found.layers] == lora_paths(llama, target_modules="all-linear")


# --- exclusions and layers ------------------------------------------------------------------------


def test_what_is_excluded_is_left_alone(llama):
    some = {"target_modules": ["q_proj", "v_proj"]}
    assert lora_paths(llama, exclude_modules=["layers.0.self_attn.q_proj", "v_proj"], **some) == [
        *layer("self_attn.q_proj", layers=(1,))
    ]
    assert lora_paths(llama, exclude_modules=r".*\.0\..*", **some) == layer(
        "self_attn.q_proj", "self_attn.v_proj", layers=(1,)
    )


def test_an_exclusion_of_what_is_no_target_anyway_is_fine(llama):
    found = lora_paths(llama, target_modules="all-linear", exclude_modules=["lm_head", "o_proj"])
    assert found == [p for p in lora_paths(llama, target_modules="all-linear") if "o_proj" not in p]


def test_an_exclusion_of_nothing_or_of_everything_is_refused(llama):
    with pytest.raises(TargetError, match=r"'v_porj' matches no module\. Did you mean v_proj"):
        lora_paths(llama, target_modules=["v_proj"], exclude_modules=["q_proj", "v_porj"])
    with pytest.raises(TargetError, match=r"'k\.\*' matches no module"):
        lora_paths(llama, target_modules=["q_proj"], exclude_modules="k.*")
    with pytest.raises(TargetError, match=r"exclude_modules='\(' is not a regular expression"):
        lora_paths(llama, target_modules=["q_proj"], exclude_modules="(")
    with pytest.raises(TargetError, match=r"\['q_proj'\] leaves no target"):
        lora_paths(llama, target_modules=["q_proj"], exclude_modules=["q_proj"])


@pytest.mark.parametrize("wanted", [1, [1]])
def test_layers_by_index(llama, wanted):
    found = lora_paths(llama, target_modules=["q_proj"], layers_to_transform=wanted)
    assert found == layer("self_attn.q_proj", layers=(1,))
    by_default = lora_paths(llama, layers_to_transform=wanted)
    assert by_default == layer("self_attn.q_proj", "self_attn.v_proj", layers=(1,))


@pytest.mark.parametrize("pattern", ["layers", ["h", "layers"]])
def test_the_list_of_layers_by_name(llama, pattern):
    some = {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0]}
    found = lora_paths(llama, layers_pattern=pattern, **some)
    assert found == layer("self_attn.q_proj", layers=(0,))  # the head is in no layer


def test_a_layer_that_is_not_there_is_refused(llama):
    with pytest.raises(TargetError, match=r"no layer \[7\]; the targets are in 0 to 1"):
        lora_paths(llama, target_modules=["q_proj"], layers_to_transform=[0, 7])
    with pytest.raises(TargetError, match=r"layers_pattern='h' is in no path such as"):
        lora_paths(llama, layers_to_transform=[0], layers_pattern="h")
    with pytest.raises(TargetError, match="in no path such as 'lm_head'"):
        lora_paths(llama, target_modules=["lm_head"], layers_to_transform=[0])


# --- names for what was found ---------------------------------------------------------------------


def test_the_shortest_names_match_just_the_chosen():
    every = ["a.0.q", "a.0.k", "a.1.q", "a.1.k", "b.q", "q"]
    assert shortest_names(["a.0.k", "a.1.k"], every) == ["k"]
    assert shortest_names(["a.0.q", "a.1.q"], every) == ["0.q", "1.q"]
    assert shortest_names(["b.q"], every) == ["b.q"]
    assert shortest_names([], every) == []
    # "q" itself is the end of every other one: no suffix tells it apart.
    assert shortest_names(["q"], every) == ["q"]


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert", "T5"])
def test_names_lead_back_to_the_layers(name):
    model = MODELS[name].model()
    found = find_targets(model, LoraConfig(target_modules=r".*\.1\..*"), Lora)
    again = find_targets(model, LoraConfig(target_modules=found.names), Lora)
    assert [view.path for view in again.layers] == [view.path for view in found.layers]
