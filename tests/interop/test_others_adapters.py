"""Adapters and configs that others wrote: read and written back, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import BloomConfig, BloomForCausalLM

import graft
import graft.methods
from graft.config import CONFIG_NAME, PeftConfig

from .oracle import PEFT_WARNS, assert_same, outputs

pytestmark = PEFT_WARNS

# A collection of others' adapters beside the repository, if there is one.
ADAPTERS = Path(__file__).parents[3] / "shared" / "data" / "adapters"
OURS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "LORA", "IA3", "BEFT")


def configs() -> list[Any]:
    found = sorted((ADAPTERS / "_peft_configs_only").glob("*.json"))
    missing = pytest.param(None, marks=pytest.mark.skip("no collection of configs here"))
    return [pytest.param(path, id=path.stem) for path in found] or [missing]


@pytest.mark.parametrize("path", configs())
def test_a_config_of_the_collection_survives_or_is_refused(path: Path) -> None:
    assert_survives_or_is_refused(json.loads(path.read_text()))


@pytest.mark.parametrize("kind", OURS)
def test_a_config_that_peft_writes_survives(kind: str, tmp_path: Path) -> None:
    virtual = {"num_virtual_tokens": 4} if kind.endswith("TUNING") else {}
    PEFT_TYPE_TO_CONFIG_MAPPING[kind](**virtual).save_pretrained(tmp_path)
    assert_survives_or_is_refused(json.loads((tmp_path / CONFIG_NAME).read_text()))


@pytest.mark.parametrize("kind", sorted(set(peft.PeftType) - set(OURS)))
def test_another_method_of_peft_is_refused(kind: str) -> None:
    assert_survives_or_is_refused({"peft_type": str(peft.PeftType(kind).value)})


def assert_survives_or_is_refused(raw: dict[str, Any]) -> None:
    if raw["peft_type"] in OURS:
        written = json.loads(PeftConfig.from_dict(raw).to_json())
        assert {key: written[key] for key in raw} == raw
        assert all(written[key] is None for key in written.keys() - raw.keys())
        return
    with pytest.raises(graft.GraftError) as caught:
        PeftConfig.from_dict(raw)
    assert repr(raw["peft_type"]) in str(caught.value)
    assert "LORA" in str(caught.value)
    assert "PREFIX_TUNING" in str(caught.value)


def test_a_trained_prompt_of_a_third_party(tmp_path: Path) -> None:
    folder = ADAPTERS / "bloomz560m_prompt_tuning"
    if not folder.is_dir():
        pytest.skip("the adapter is not here")
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=64, hidden_size=1024, n_layer=1, n_head=16)
    base = BloomForCausalLM(config)
    weights = base.state_dict()

    def copy() -> BloomForCausalLM:
        model = BloomForCausalLM(config)
        model.load_state_dict(weights)
        return model

    # Its config starts from a text by a tokenizer that is not here; PEFT asks for it when loading.
    raw = json.loads((folder / CONFIG_NAME).read_text())
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**raw, "prompt_tuning_init": "RANDOM"}))
    (tmp_path / "adapter_model.bin").symlink_to(folder / "adapter_model.bin")

    theirs = peft.PeftModel.from_pretrained(copy(), tmp_path).eval()
    ours = graft.PeftModel.from_pretrained(copy(), folder).eval()
    ids = torch.tensor([[5, 9, 33, 60], [7, 7, 2, 41]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    assert_same(outputs(ours, batch), outputs(theirs, batch))
    assert ours.active_peft_config.to_dict().items() >= {**raw, "num_layers": 1}.items()
