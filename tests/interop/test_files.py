"""Adapters on disk go from PEFT to graft and from graft to PEFT, and nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import graft
from graft.config import CONFIG_NAME

from .oracle import CASES, MODELS, PEFT_WARNS, Case, assert_same, make_batch, outputs, randomise

pytestmark = PEFT_WARNS

WEIGHTS = "adapter_model.safetensors"
HEADS = [
    (case, name)
    for name in ("llama-cls", "bert-tokens", "bert-qa")
    for case in CASES
    if case.name in ("lora", "ia3")
]
EVERY = [(case, name) for name in ("llama", "gpt2", "bloom", "bert", "t5") for case in CASES]


def named(pairs: list[tuple[Case, str]]) -> Any:
    ids = [f"{name}-{case.name}" for case, name in pairs]
    return pytest.mark.parametrize(("case", "name"), pairs, ids=ids)


def config_of(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / CONFIG_NAME).read_text())
    if config["modules_to_save"]:  # PEFT repeats the names each time it saves
        config["modules_to_save"] = list(dict.fromkeys(config["modules_to_save"]))
    return config


@named(EVERY + HEADS)
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
    before, after = (load_file(tmp_path / whose / WEIGHTS) for whose in ("theirs", "ours"))
    assert list(before) == list(after)
    for key, tensor in before.items():
        # On an encoder-decoder PEFT saves as many rows again, which it never uses.
        rows = case.values(model).get("num_virtual_tokens", len(tensor))
        assert tensor.shape == after[key].shape
        assert torch.equal(tensor[:rows], after[key][:rows])


@named(EVERY + HEADS)
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
    wanted, found = config_of(tmp_path / "reference"), config_of(tmp_path)
    assert set(found) <= set(wanted)
    shapes = [
        {key: (tensor.shape, tensor.dtype) for key, tensor in load_file(folder / WEIGHTS).items()}
        for folder in (tmp_path, tmp_path / "reference")
    ]
    assert shapes[0] == shapes[1]
