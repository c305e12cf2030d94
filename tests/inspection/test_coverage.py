"""Which layers each pattern hits; counted again by brute force, and by PEFT on the same model."""

from __future__ import annotations

import re
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3NextConfig

from conformance.families import FAMILIES
from graft import BitFitConfig, IA3Config, LoraConfig, PeftConfig
from graft.inspection import AdapterReport, StackHits, inspect
from interop.oracle import PEFT_WARNS
from tiny import tiny_llama

pytestmark = PEFT_WARNS
MODELS = {family.name: family for family in FAMILIES}


def hybrid() -> nn.Module:
    """Layers 0, 1, 2 and 4 have linear attention, layer 3 has keys and values."""
    config = Qwen3NextConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def look(model: nn.Module, config: PeftConfig) -> AdapterReport:
    found = inspect(model, config).adapter
    assert found is not None
    return found


def counted(model: nn.Module, stack: str, hits: list[str]) -> StackHits:
    """By brute force: for each layer, the paths that begin with its own."""
    layers = [f"{stack}.{name}." for name, _ in model.get_submodule(stack).named_children()]
    return StackHits(stack, tuple(sum(p.startswith(layer) for p in hits) for layer in layers))


# --- PEFT is the oracle ---------------------------------------------------------------------------

SETTINGS: dict[str, tuple[type[PeftConfig], dict[str, Any]]] = {
    "names": (LoraConfig, {"target_modules": ["q_proj", "up_proj"]}),
    "a path": (LoraConfig, {"target_modules": ["layers.1.mlp.up_proj", "v_proj"]}),
    "regex": (LoraConfig, {"target_modules": r".*\.(q|k)_proj"}),
    "all-linear": (LoraConfig, {"target_modules": "all-linear"}),
    "exclude names": (
        LoraConfig,
        {"target_modules": "all-linear", "exclude_modules": ["q_proj", "layers.0.mlp.up_proj"]},
    ),
    "exclude regex": (
        LoraConfig,
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\..*"},
    ),
    "layers": (LoraConfig, {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "one layer": (LoraConfig, {"target_modules": ["q_proj"], "layers_to_transform": 0}),
    "layers by pattern": (
        LoraConfig,
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
    ),
    "embedding and head": (LoraConfig, {"target_modules": ["embed_tokens", "lm_head"]}),
    "ia3": (
        IA3Config,
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "ia3 regex": (
        IA3Config,
        {
            "target_modules": r".*\.(k_proj|down_proj)",
            "feedforward_modules": r".*\.down_proj",
        },
    ),
    "ia3 exclude": (
        IA3Config,
        {
            "target_modules": ["k_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
            "exclude_modules": ["layers.0.mlp.down_proj"],
        },
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_hits_are_those_of_peft(name):
    config_class, values = SETTINGS[name]
    theirs = getattr(peft, config_class.__name__)(**values)
    expected = peft.get_peft_model(tiny_llama(), theirs).targeted_module_names
    model = tiny_llama()
    found = look(model, config_class(**values))
    hits = [path for pattern in found.patterns for path in pattern.layers]
    assert sorted(hits) == sorted(expected)
    in_layers = [path for path in hits if path.startswith("model.layers.")]
    assert found.stacks == ((counted(model, "model.layers", in_layers),) if in_layers else ())


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert", "T5", "Bloom", "Mixtral"])
def test_all_linear_layers_of_other_families_are_those_of_peft(name):
    theirs = peft.LoraConfig(target_modules="all-linear")
    expected = peft.get_peft_model(MODELS[name].model(), theirs).targeted_module_names
    found = look(MODELS[name].model(), LoraConfig(target_modules="all-linear"))
    hits = {path for pattern in found.patterns for path in pattern.layers}
    experts = {path for path in hits if ".experts." in path}  # which PEFT leaves out
    assert hits - experts == set(expected)
    assert bool(experts) == (name == "Mixtral")


def test_bitfit_takes_the_same_settings():
    """PEFT has no BitFit; the layers are counted by hand."""
    model = MODELS["GPT2"].model()
    biased = [n.removesuffix(".bias") for n, _ in model.named_parameters() if n.endswith(".bias")]

    def hits(**values: Any) -> set[str]:
        return {
            p for pattern in look(model, BitFitConfig(**values)).patterns for p in pattern.layers
        }

    assert hits() == set(biased)
    assert hits(exclude_modules=["c_attn"]) == {p for p in biased if not p.endswith("c_attn")}
    assert hits(exclude_modules=r".*ln_.*") == {p for p in biased if "ln_" not in p}
    assert hits(layers_to_transform=1) == {p for p in biased if ".h.1." in p}
    assert hits(target_modules=["c_fc"]) == {p for p in biased if p.endswith("c_fc")}
    assert hits(target_modules=r".*\.h\.0\.ln_\d") == {p for p in biased if ".0.ln_" in p}


# --- layer by layer -------------------------------------------------------------------------------


def test_names_that_some_layers_lack():
    model = hybrid()
    found = look(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    for pattern in found.patterns:
        own = [p for p, _ in model.named_modules() if p.endswith(f".{pattern.pattern}")]
        assert pattern.layers == tuple(own)
        assert pattern.stacks == (counted(model, "model.layers", own),)
        assert pattern.stacks[0].hits == (0, 0, 0, 1, 0)
        assert pattern.stacks[0].left_out == (0, 1, 2, 4)
    assert found.warnings == (
        "q_proj and v_proj hit 1 of 5 layers of model.layers; the others, 0-2,4, have no such "
        "module and get no adapter.",
    )


def test_layers_that_another_pattern_hits_are_not_without_an_adapter():
    found = look(hybrid(), LoraConfig(target_modules=["q_proj", "shared_expert_gate"]))
    assert found.stacks == (StackHits("model.layers", (1, 1, 1, 2, 1)),)
    assert found.warnings == (
        "q_proj hits 1 of 5 layers of model.layers; the others, 0-2,4, have no such module.",
    )


def test_layers_that_are_left_out_though_they_have_the_module():
    found = look(tiny_llama(), LoraConfig(target_modules=["q_proj"], layers_to_transform=1))
    assert found.warnings == (
        "q_proj hits 1 of 2 layers of model.layers; the others, 0, get no adapter.",
    )
    wanted = LoraConfig(target_modules=["q_proj", "v_proj"], exclude_modules=["0.self_attn.q_proj"])
    assert look(tiny_llama(), wanted).warnings == (
        "q_proj hits 1 of 2 layers of model.layers, not 0.",
    )


def test_layers_that_no_pattern_hits_though_each_leaves_out_others():
    model = tiny_llama(layers=4)
    wanted = ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]
    *_, last = look(model, LoraConfig(target_modules=wanted)).warnings
    assert last == "Layers 2-3 of model.layers get no adapter."


def test_a_pattern_that_hits_less_in_some_layers():
    pattern = r".*(q_proj|layers\.[012]\.self_attn\.v_proj)"
    found = look(tiny_llama(layers=4), LoraConfig(target_modules=pattern))
    assert found.patterns[0].stacks == (StackHits("model.layers", (2, 2, 2, 1)),)
    assert found.warnings == (
        f"{pattern} hits 2 modules in most layers of model.layers, but another number in 3.",
    )


def test_a_name_in_a_pattern_that_nothing_has():
    found = look(tiny_llama(), LoraConfig(target_modules=r".*\.(q_proj|v_porj)"))
    assert found.warnings == (
        "Nothing is called 'v_porj'. Did you mean v_proj or q_proj or o_proj?",
    )


def test_an_even_hit_needs_no_word():
    assert look(tiny_llama(), LoraConfig(target_modules="all-linear")).warnings == ()
    assert look(MODELS["T5"].model(), LoraConfig()).warnings == ()


def test_encoder_and_decoder_are_two_stacks():
    model = MODELS["T5"].model()
    (q, *_) = look(model, LoraConfig(target_modules=["q"])).patterns
    assert q.stacks == tuple(
        counted(model, f"{part}.block", list(q.layers)) for part in ("encoder", "decoder")
    )
    assert [each.hits for each in q.stacks] == [(1, 1), (2, 2)]  # of the decoder, cross-attention


def test_choices_by_layer_are_shown_as_one():
    """BERT calls three linear layers `dense`; only a path by layer says which is meant."""
    model = MODELS["Bert"].model()
    found = {p.pattern: p.layers for p in look(model, IA3Config(task_type="TOKEN_CLS")).patterns}
    assert found["{0-1}.output.dense"] == tuple(
        f"bert.encoder.layer.{index}.output.dense" for index in range(2)
    )
    some = look(tiny_llama(), IA3Config(layers_to_transform=1)).patterns
    assert {re.sub(r"^.*\.", "", pattern.pattern) for pattern in some} == {
        "k_proj",
        "v_proj",
        "down_proj",
    }
    assert all(path.startswith("model.layers.1.") for each in some for path in each.layers)


def test_a_module_that_is_a_list_itself():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3)))
    found = look(model, LoraConfig(target_modules=["0.0", "2.0"]))
    assert found.stacks == (StackHits("", (1, 0, 1)),)
    assert found.warnings[-1] == "Layers 1 of the model get no adapter."
