from __future__ import annotations

import pytest
import torch
from torch import nn

from graft.config import PeftConfig
from graft.errors import ConfigError
from graft.methods import BitFit, BitFitConfig, LoraConfig
from graft.methods.affine import merged

from .conftest import conv1d, linear, make_view

MINIMAL = {"peft_type": "LORA", "r": 1, "target_modules": "dummy-target-modules", "bias": "all"}


@pytest.mark.parametrize("make", [linear, conv1d, lambda: make_view(nn.LayerNorm(4))])
def test_the_bias_is_replaced(make):
    view = make()
    adapter = BitFit(BitFitConfig(), view)
    assert torch.equal(adapter.bias, view.bias)
    adapter.bias.data.normal_()
    weight, bias = merged(view, [adapter.affine(view)])
    assert torch.equal(weight, view.weight)
    torch.testing.assert_close(bias, adapter.bias.detach(), rtol=0, atol=1e-6)
    assert adapter.to_disk().keys() == {"bias"}


@pytest.mark.parametrize(("own", "new"), [(False, False), (False, True), (True, True)])
def test_a_new_bias_is_added(own, new):
    view = linear(bias=own)
    adapter = BitFit(BitFitConfig(new_biases=new), view)
    assert {name: t.shape for name, t in adapter.to_disk().items()} == {"beft_bias": (1, 4)}
    assert adapter.affine(view).shift.abs().max() == 0
    adapter.beft_bias.data.normal_()
    _, bias = merged(view, [adapter.affine(view)])
    expected = adapter.beft_bias[0] + (view.bias if own else 0)
    torch.testing.assert_close(bias, expected.detach(), rtol=0, atol=1e-6)


def test_biases_that_are_there_and_new_ones_do_not_mix_with_norms():
    norm = make_view(nn.LayerNorm(4), "norm")
    with pytest.raises(ConfigError, match="has no bias, while norms among the targets have one"):
        BitFit.resolved(BitFitConfig(), [linear(bias=False), norm], ["q_proj", "norm"])
    resolved = BitFit.resolved(BitFitConfig(), [linear(), norm], ["q_proj", "norm"])
    assert not resolved.new_biases
    assert BitFit.resolved(BitFitConfig(), [linear(bias=False)], ["q_proj"]).new_biases
    said = BitFitConfig(new_biases=True)
    assert BitFit.resolved(said, [linear()], ["q_proj"]).new_biases


# --- files ----------------------------------------------------------------------------------------


def test_it_is_written_as_what_peft_has():
    raw = BitFitConfig(task_type="SEQ_CLS", target_modules=["query"]).to_dict()
    assert raw.items() >= {**MINIMAL, "task_type": "SEQ_CLS"}.items()
    new = BitFitConfig(target_modules=["q_proj"], new_biases=True).to_dict()
    assert new.items() >= {"peft_type": "BEFT", "target_modules": ["q_proj"]}.items()
    assert "new_biases" not in {**raw, **new}


def test_it_is_known_by_what_it_targets():
    assert isinstance(PeftConfig.from_dict(MINIMAL), BitFitConfig)
    assert isinstance(PeftConfig.from_dict({**MINIMAL, "target_modules": ["q"]}), LoraConfig)
    assert isinstance(PeftConfig.from_dict({"peft_type": "BEFT"}), BitFitConfig)
    own = PeftConfig.from_dict({"peft_type": "BITFIT", "target_modules": ["q"]})
    assert not own.new_biases


@pytest.mark.parametrize(
    "raw",
    [
        MINIMAL,
        {**MINIMAL, "r": 8, "lora_alpha": 3, "megatron_core": "megatron.core", "use_dora": True},
        {"peft_type": "BEFT", "target_modules": ["v_proj"], "init_weights": True},
        {"peft_type": "BEFT", "target_modules": None, "init_weights": False},
    ],
)
def test_every_key_survives(raw):
    config = PeftConfig.from_dict(raw)
    config.require_supported()  # it is about matrices that are not there
    assert config.to_dict().items() >= raw.items()
    assert config.changed(inference_mode=True).to_dict().items() >= raw.items()


@pytest.mark.parametrize("raw", [MINIMAL, {"peft_type": "BEFT"}])
def test_an_unknown_key_is_refused(raw):
    with pytest.raises(ConfigError, match=r"unknown key 'modules_to_saves'.*modules_to_save"):
        PeftConfig.from_dict({**raw, "modules_to_saves": ["score"]})


def test_a_checkpoint_says_which_biases():
    keys = [
        "base_model.model.bert.encoder.layer.0.output.dense.bias",
        "base_model.model.bert.pooler.dense.bias",
        "base_model.model.classifier.bias",
        "base_model.model.classifier.weight",
    ]
    config = PeftConfig.from_dict({**MINIMAL, "modules_to_save": ["classifier", "score"]})
    located = config.located(keys)
    assert located.target_modules == ["bert.encoder.layer.0.output.dense", "bert.pooler.dense"]
    assert config.target_modules is None
    new = PeftConfig.from_dict({"peft_type": "BEFT"})
    key = "base_model.model.model.layers.0.self_attn.v_proj.beft_bias"
    assert new.located([key]).target_modules == ["model.layers.0.self_attn.v_proj"]


def test_targets_that_are_named_stay():
    config = BitFitConfig(target_modules=["query"])
    assert config.located(["base_model.model.other.bias"]) is config
