"""In what precision the base model is held: a decision from facts."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, T5Config

from graft.training import precision
from graft.training.precision import Hardware, base_in_bf16, decide, this_hardware

WITH, WITHOUT = Hardware("a card", bf16=True), Hardware("a card", bf16=False)


@pytest.mark.parametrize("hardware", [WITH, WITHOUT])
@pytest.mark.parametrize("width", [64, 4096])
@pytest.mark.parametrize("wanted", [True, False])
def test_the_run_file_has_the_last_word(wanted, width, hardware):
    assert decide(wanted, width, hardware) == (wanted, "as the run file says")


@pytest.mark.parametrize(
    ("width", "hardware", "bf16", "reason"),
    [
        (4096, WITH, True, "a card computes in it"),
        (None, WITH, True, "a card computes in it"),
        (4096, WITHOUT, False, "a card has no units for bfloat16"),
        (64, WITHOUT, False, "a card has no units for bfloat16"),
        (64, WITH, False, "a model of width 64 is small"),
    ],
)
def test_hardware_and_width_decide(width, hardware, bf16, reason):
    decision, why = decide(None, width, hardware)
    assert decision is bf16
    assert why.startswith(reason)


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(hidden_size=1024), GPT2Config(n_embd=1024), T5Config(d_model=1024)],
    ids=lambda config: config.model_type,
)
def test_the_width_is_found_whatever_a_config_calls_it(config, monkeypatch):
    monkeypatch.setattr(precision, "this_hardware", lambda kind: WITH)
    assert base_in_bf16(None, config)[0]
    name = {"llama": "hidden_size", "gpt2": "n_embd", "t5": "d_model"}[config.model_type]
    setattr(config, name, 128)
    assert not base_in_bf16(None, config)[0]


def test_a_processor_computes_in_bf16_where_torch_names_units_for_it(monkeypatch):
    def capable(**found):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
        return this_hardware("cpu")

    assert capable(avx512_bf16=True) == Hardware("the processor (AVX512-BF16)", bf16=True)
    assert capable(amx_bf16=True, avx512_bf16=True).name == "the processor (AMX)"
    assert not capable(avx512_bf16=False, avx2=True).bf16
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not this_hardware("cpu").bf16
