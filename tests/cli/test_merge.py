from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from graft import BitFitConfig, LoraConfig, PrefixTuningConfig
from tiny import make_tokenizer, save_adapter, tiny_llama


def test_it_says_how_equal_the_result_is(graft, lora, tmp_path, capsys):
    assert graft("merge", lora, tmp_path / "out") == 0
    compared, done = capsys.readouterr().out.splitlines()
    assert done.startswith(f"merged: {tmp_path / 'out'} (float32, ")
    effect, error = map(float, re.findall(r"up to ([\d.e+-]+)", compared))
    assert error < 1e-4 < effect
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype is torch.float32


def test_it_says_what_rounding_costs(graft, lora, tmp_path, capsys):
    assert graft("merge", lora, tmp_path / "out", "--dtype", "bfloat16") == 0
    _, rounded, done = capsys.readouterr().out.splitlines()
    cost = float(re.findall(r"up to ([\d.e+-]+)", rounded)[0])
    assert 1e-4 < cost < 1
    assert "bfloat16" in done
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype is torch.bfloat16


def test_it_warns_where_rounding_costs_the_adapter(graft, base_folder, tmp_path, capsys):
    """A new LoRA moves nothing, so any rounding is more than what it does."""
    adapter = save_adapter(tmp_path / "new", base_folder, LoraConfig(task_type="CAUSAL_LM"))
    assert graft("merge", adapter, tmp_path / "out", "--dtype", "float16") == 0
    assert "--dtype float32 keeps it all" in capsys.readouterr().out


@pytest.fixture(scope="module")
def refused(base_folder, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("refused")
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    bitfit = BitFitConfig(task_type="CAUSAL_LM")
    tiny_llama(head_dim=8).save_pretrained(folder / "wide")
    make_tokenizer().save_pretrained(folder / "wide")
    return {
        "PREFIX": str(save_adapter(folder / "prefix", base_folder, prefix)),
        "BITFIT": str(save_adapter(folder / "bitfit", base_folder, bitfit)),
        "WIDE": str(folder / "wide"),
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["PREFIX", "OUT"], "graft chat"),
        (["BITFIT", "OUT"], "graft chat"),
        (["LORA", "LORA"], "not empty"),
        (["LORA", "OUT", "--dtype", "bfloat"], "Did you mean bfloat16"),
        (["LORA", "OUT", "--base-model", "WIDE"], "another base model"),
        (["LORA", "OUT", "--base-model", "./nowhere"], "no folder ./nowhere"),
        (["./nowhere", "OUT"], "no adapter folder ./nowhere"),
    ],
)
def test_what_the_user_can_mend(graft, lora, refused, tmp_path, capsys, words, said):
    places = {**refused, "LORA": lora, "OUT": tmp_path / "new" / "out"}
    before = sorted(path.name for path in lora.iterdir())
    assert graft("merge", *(places.get(word, word) for word in words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.rglob("out*"))
    assert not list(tmp_path.rglob(".out*"))
    assert sorted(path.name for path in lora.iterdir()) == before
