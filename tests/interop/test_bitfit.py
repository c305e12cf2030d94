"""BitFit, which PEFT has under other names: LoRA that trains biases alone, or BEFT's new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import graft

from .cases import MODELS, Model
from .oracle import PEFT_WARNS, assert_same, gradients, make_batch, outputs, randomise

pytestmark = [
    *PEFT_WARNS,
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias:UserWarning"),
]


def bitfit(model: Model, **values: Any) -> graft.PeftModel:
    config = graft.BitFitConfig(task_type=model.task.value, **values)
    return graft.get_peft_model(model.make(), config).eval()


@pytest.mark.parametrize("name", ["gpt2", "bloom", "bert", "bert-tokens", "bert-qa"])
def test_peft_loads_biases_and_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    ours = bitfit(model)
    with torch.no_grad():
        for parameter in ours.adapter("default").parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(model.make(), tmp_path).eval()

    batch = make_batch(model)
    merged = ours.merge_and_unload(["default"])
    for name, value in outputs(theirs, batch).items():
        assert torch.equal(merged(**batch)[name], value)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "bert"])
def test_biases_learn_as_in_peft(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    ours = bitfit(model)
    randomise(ours)
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(model.make(), tmp_path, is_trainable=True).eval()

    batch = make_batch(model)
    found, expected = outputs(ours, batch), outputs(theirs, batch)
    found["loss"].backward()
    expected["loss"].backward()
    assert_same(found, expected)
    own, wanted = gradients(ours), gradients(theirs)
    assert_same(own, {key: wanted[key] for key in own})
    # PEFT's bias="all" lets the biases of a new head learn twice; graft's head is one module.
    assert {key for key in wanted if key not in own} <= {"base_model.model.classifier.bias"}


def test_every_bias_of_the_model_is_in_the_file(tmp_path: Path) -> None:
    model = MODELS["gpt2"]
    bitfit(model).save_pretrained(tmp_path)
    shapes = {key: t.shape for key, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    biases = {n: p for n, p in model.make().named_parameters() if n.endswith(".bias")}
    assert shapes == {f"base_model.model.{name}": bias.shape for name, bias in biases.items()}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["bias"] == "all"


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_saved_biases_come_back(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    ours = bitfit(model)
    randomise(ours)
    ours.save_pretrained(tmp_path / "first")
    again = graft.PeftModel.from_pretrained(model.make(), tmp_path / "first").eval()
    assert again.active_peft_config.peft_type == "BITFIT"
    batch = make_batch(model)
    for name, value in outputs(ours, batch).items():
        assert torch.equal(outputs(again, batch)[name], value)
    again.save_pretrained(tmp_path / "second")
    first, second = (
        load_file(tmp_path / n / "adapter_model.safetensors") for n in ("first", "second")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_only_the_targets_biases_are_saved(tmp_path: Path) -> None:
    model = MODELS["bert"]
    ours = bitfit(model, target_modules=["query"])
    randomise(ours)
    ours.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert {key.rsplit(".", 2)[-2] for key in keys} == {"query", "classifier"}
    theirs = peft.PeftModel.from_pretrained(model.make(), tmp_path).eval()
    batch = make_batch(model)
    assert_same(outputs(ours, batch), outputs(theirs, batch))


@pytest.mark.parametrize("name", ["llama", "llama-cls", "t5"])
def test_new_biases_are_befts(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    ours = bitfit(model)
    randomise(ours)
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(model.make(), tmp_path, is_trainable=True).eval()
    assert theirs.active_peft_config.peft_type == "BEFT"
    batch = make_batch(model)
    found, expected = outputs(ours, batch), outputs(theirs, batch)
    found["loss"].backward()
    expected["loss"].backward()
    assert_same(found, expected)
    assert_same(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_graft_loads_beft(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    targets = model.attention
    config = peft.BeftConfig(task_type=model.task.value, target_modules=targets)
    theirs = peft.get_peft_model(model.make(), config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = graft.PeftModel.from_pretrained(model.make(), tmp_path / "theirs").eval()
    batch = make_batch(model)
    assert_same(outputs(ours, batch), outputs(theirs, batch))

    ours.save_pretrained(tmp_path / "ours")
    before, after = (
        json.loads((tmp_path / whose / "adapter_config.json").read_text())
        for whose in ("theirs", "ours")
    )
    assert sorted(after.pop("target_modules")) == sorted(before.pop("target_modules"))
    before["modules_to_save"] = after["modules_to_save"] = None
    assert after == before
