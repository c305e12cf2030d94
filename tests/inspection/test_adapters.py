"""Every method with its defaults: what is suggested is what a run would then do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from conformance.families import FAMILIES
from graft import PeftModel, get_peft_model
from graft.hub import load_model, task_of
from graft.inspection import Suggestion, inspect
from graft.methods import METHODS, make_config, method_names
from graft.training.config import RunConfig
from tiny import tiny_llama

MODELS = {family.name: family for family in FAMILIES}


def by_method(found: tuple[Suggestion, ...]) -> dict[str, Suggestion]:
    return {each.method: each for each in found}


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_a_suggestion_is_what_attaching_and_saving_do(base_folder, tmp_path, method, task):
    each = by_method(inspect(base_folder, task_type=task).suggestions)[method]
    assert each.problem is None
    assert each.adapter is not None
    base = load_model(str(base_folder), task)
    numbers = sum(parameter.numel() for parameter in base.parameters())
    model = PeftModel(base, make_config(method, task_type=task, **each.settings))
    trainable, _ = model.get_nb_trainable_parameters()
    assert each.adapter.trainable_parameters == trainable
    assert each.adapter.share == trainable / numbers
    assert {p for pattern in each.adapter.patterns for p in pattern.layers} == set(model.sites)
    run = {"base_model": "x", "task_type": task, "data": {"train": "x"}}
    run["train"] = {"output_dir": "x"}
    run["adapters"] = {"x": {"method": method, **each.settings}}
    resolved = RunConfig.model_validate(run).resolved(bf16=False)
    assert each.adapter.learning_rate == resolved.train.learning_rate
    model.save_pretrained(tmp_path)
    tensors = 0
    for path in tmp_path.glob("*.safetensors"):
        raw = path.read_bytes()
        tensors += len(raw) - 8 - int.from_bytes(raw[:8], "little")
    assert each.adapter.bytes_on_disk == tensors


@pytest.mark.parametrize("name", MODELS)
def test_every_method_is_looked_at_on_every_family(name):
    model = MODELS[name].model()
    found = inspect(model)
    assert [each.method for each in found.suggestions] == method_names()
    for each in found.suggestions:
        assert (each.adapter is None) == (each.problem is not None)
        if each.adapter is not None and each.settings:
            assert each.adapter.virtual_tokens == each.settings["num_virtual_tokens"]
        if each.problem is None:
            config = make_config(
                each.method, task_type=task_of(model.config, type(model).__name__), **each.settings
            )
            get_peft_model(MODELS[name].model(), config)  # does as it says


def test_a_method_that_does_not_work_says_why():
    config = WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        vocab_size=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    with torch.device("meta"):
        found = by_method(inspect(WhisperForConditionalGeneration(config)).suggestions)
    for method, cls in zip(method_names(), METHODS.values(), strict=True):
        reads_tokens = cls.config_class.is_prompt_learning
        assert (found[method].problem is not None) == reads_tokens
        assert not reads_tokens or "goes through a Conv1d" in (found[method].problem or "")


@pytest.mark.parametrize(("cls", "config"), [(ViTModel, ViTConfig()), (CLIPModel, CLIPConfig())])
def test_models_of_pictures_take_what_acts_on_layers(cls, config):
    with torch.device("meta"):
        found = by_method(inspect(cls(config)).suggestions)
    assert "reads no tokens" in (found["prompt_tuning"].problem or "")
    assert found["lora"].adapter is not None


def test_a_module_that_is_no_transformer():
    found = by_method(inspect(nn.Sequential(nn.Linear(3, 4), nn.ReLU())).suggestions)
    assert "say target_modules" in (found["lora"].problem or "")
    assert found["bitfit"].adapter is not None
    assert found["bitfit"].adapter.trainable_parameters == 4
    assert "has no input embeddings" in (found["prompt_tuning"].problem or "")


def test_the_command_names_the_model_and_the_method(base_folder):
    for each in inspect(base_folder).suggestions:
        assert each.command == f"graft init {base_folder} DATA --method {each.method}"
    assert {each.command for each in inspect(tiny_llama()).suggestions} == {None}


def test_nothing_is_suggested_where_something_was_asked(base_folder):
    assert inspect(base_folder, make_config("ia3")).suggestions == ()
    assert inspect(base_folder, regex=".*").suggestions == ()
