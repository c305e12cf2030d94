"""Adapters on disk go from PEFT to graft and from graft to PEFT, and nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
import yaml
from huggingface_hub import ModelCardData
from safetensors.torch import load_file
from torch import Tensor

import graft
from graft.config import CONFIG_NAME

from .cases import CASES, MODELS, Case, each_saved_pair
from .oracle import PEFT_WARNS, assert_same, make_batch, outputs, own_tensors, randomise

pytestmark = PEFT_WARNS
NAMED = {case.name: case for case in CASES}


def config_of(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / CONFIG_NAME).read_text())
    if config["modules_to_save"]:  # PEFT repeats the names each time it saves
        config["modules_to_save"] = list(dict.fromkeys(config["modules_to_save"]))
    return config


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return own_tensors(load_file(folder / "adapter_model.safetensors"))


@each_saved_pair
def test_peft_saves_graft_loads_and_saves_the_same(case: Case, name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    theirs = case.peft(model)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")

    ours = graft.PeftModel.from_pretrained(model.make(), tmp_path / "theirs").eval()
    batch = make_batch(model)
    assert_same(outputs(ours, batch), outputs(theirs, batch))

    ours.save_pretrained(tmp_path / "ours")
    assert config_of(tmp_path / "ours") == config_of(tmp_path / "theirs")
    before, after = (tensors_of(tmp_path / whose) for whose in ("theirs", "ours"))
    assert list(before) == list(after)
    for key, tensor in before.items():
        # On an encoder-decoder PEFT saves as many rows again, which it never uses.
        rows = case.values(model).get("num_virtual_tokens", len(tensor))
        assert tensor.shape == after[key].shape
        assert torch.equal(tensor[:rows], after[key][:rows])


@each_saved_pair
def test_graft_saves_peft_loads(case: Case, name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    ours = case.graft(model)
    randomise(ours)
    ours.save_pretrained(tmp_path)

    theirs = peft.PeftModel.from_pretrained(model.make(), tmp_path).eval()  # warnings are errors
    batch = make_batch(model)
    assert_same(outputs(ours, batch), outputs(theirs, batch))

    reference = case.peft(model)
    reference.save_pretrained(tmp_path / "reference")
    assert set(config_of(tmp_path)) <= set(config_of(tmp_path / "reference"))
    shapes = [
        {key: (tensor.shape, tensor.dtype) for key, tensor in tensors_of(folder).items()}
        for folder in (tmp_path, tmp_path / "reference")
    ]
    assert shapes[0] == shapes[1]


def test_adapters_with_names_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    model = MODELS["llama"]
    theirs = NAMED["lora"].peft(model)
    theirs.add_adapter("second", peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["k_proj"]))
    theirs.set_adapter("second")
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")

    ours = graft.PeftModel.from_pretrained(model.make(), tmp_path / "theirs")
    ours.load_adapter(tmp_path / "theirs" / "second", "second")
    ours.set_adapter("second")
    batch = make_batch(model)
    assert_same(outputs(ours.eval(), batch), outputs(theirs.eval(), batch))

    ours.save_pretrained(tmp_path / "ours")
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")


def files_of(folder: Path) -> set[str]:
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {path for path in paths if path != "second/README.md"}  # PEFT writes one card for all


def test_adapters_of_two_methods_are_each_loaded_by_peft(tmp_path: Path) -> None:
    model = MODELS["llama"]
    ours = NAMED["lora"].graft(model)
    ours.add_adapter(
        "prompt", graft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    randomise(ours)
    ours.save_pretrained(tmp_path)
    batch = make_batch(model)
    for name, folder in (("default", tmp_path), ("prompt", tmp_path / "prompt")):
        theirs = peft.PeftModel.from_pretrained(model.make(), folder).eval()
        ours.set_adapter(name)
        assert_same(outputs(ours, batch), outputs(theirs, batch))


def test_layers_by_index_where_paths_have_two_numbers(tmp_path: Path) -> None:
    # PEFT takes the last number in a path for the layer's: in T5 that of a part of the block.
    model = MODELS["t5"]
    config = graft.LoraConfig(task_type="SEQ_2_SEQ_LM", layers_to_transform=[1])
    ours = graft.get_peft_model(model.make(), config).eval()
    assert all("block.1." in path for path in ours.targeted_module_names)
    randomise(ours)
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(model.make(), tmp_path).eval()
    batch = make_batch(model)
    assert_same(outputs(ours, batch), outputs(theirs, batch))


def test_old_weights_are_read(tmp_path: Path) -> None:
    model = MODELS["llama"]
    theirs = NAMED["lora"].peft(model)
    randomise(theirs)
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").is_file()
    ours = graft.PeftModel.from_pretrained(model.make(), tmp_path).eval()
    batch = make_batch(model)
    assert_same(outputs(ours, batch), outputs(theirs, batch))


def test_the_model_card_is_recognised_by_hubs(tmp_path: Path) -> None:
    NAMED["lora"].graft(MODELS["llama"]).save_pretrained(tmp_path / "ours")
    NAMED["lora"].peft(MODELS["llama"]).save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        ModelCardData(
            **yaml.safe_load((tmp_path / whose / "README.md").read_text().split("---")[1])
        )
        for whose in ("ours", "theirs")
    )
    assert ours.library_name == theirs.library_name == "peft"
    assert "lora" in ours.tags
    assert "lora" in theirs.tags
