"""Weighted combinations of attached adapters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conformance.families import FAMILIES
from graft import (
    BitFitConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from graft.errors import ConfigError

LLAMA = FAMILIES[0]
BERT = next(family for family in FAMILIES if family.name == "Bert")
IDS = torch.tensor([[5, 9, 33], [7, 2, 60]])


def lora(**values) -> LoraConfig:
    defaults = {"task_type": "CAUSAL_LM", "r": 2, "init_lora_weights": False}
    return LoraConfig(**{**defaults, "target_modules": ["q_proj"], **values})


def make_model(first: LoraConfig, second: LoraConfig) -> PeftModel:
    model = get_peft_model(LLAMA.model(), first, "first").eval()
    model.add_adapter("second", second)
    return model


def updates(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    adapter = model.adapter(name)
    return {
        path: layer.affine(adapter.views[path]).delta().detach()
        for path, layer in adapter.layers.items()
    }


@pytest.mark.parametrize("kind", ["cat", "linear"])
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 3}}])
def test_an_exact_combination_adds_the_updates(kind, more):
    model = make_model(lora(**more), lora(target_modules=["q_proj", "v_proj"], r=3, lora_alpha=5))
    errors = model.add_weighted_adapter(["first", "second"], [0.5, -2.0], "both", kind)
    assert set(errors.values()) == {0.0}
    first, second, both = (updates(model, name) for name in ("first", "second", "both"))
    assert both.keys() == second.keys()
    for path, update in both.items():
        expected = 0.5 * first.get(path, torch.zeros(())) - 2 * second[path]
        torch.testing.assert_close(update, expected, rtol=0, atol=1e-5)
    assert model.active_adapters == ["first"]


def test_a_combination_saves_and_loads(tmp_path):
    model = make_model(lora(), lora(target_modules=["q_proj", "v_proj"], r=3))
    model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "both", "cat")
    model.set_adapter("both")
    model.save_pretrained(tmp_path, selected_adapters=["both"])
    again = PeftModel.from_pretrained(LLAMA.model(), tmp_path / "both").eval()
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)


def test_a_cut_is_reported():
    model = make_model(lora(r=3), lora(r=3))
    errors = model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "both", svd_rank=2)
    exact = {
        p: a + b
        for (p, a), b in zip(
            updates(model, "first").items(), updates(model, "second").values(), strict=True
        )
    }
    for path, update in updates(model, "both").items():
        lost = (update - exact[path]).norm() / exact[path].norm()
        assert errors[path] == pytest.approx(lost.item(), abs=1e-5)
        assert errors[path] > 0


def test_ia3_of_other_layers_counts_as_the_identity():
    def ia3(*names: str) -> IA3Config:
        return IA3Config(task_type="CAUSAL_LM", target_modules=list(names), feedforward_modules=[])

    model = get_peft_model(LLAMA.model(), ia3("k_proj"), "first")
    model.add_adapter("second", ia3("v_proj"))
    model.add_weighted_adapter(["first", "second"], [0.5, 0.5], "both", "linear")
    model.set_adapter("both")
    assert torch.equal(model(IDS).logits, model.base_model(IDS).logits)  # two identities


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("eoi,bi->bo", self.weight, x)


def test_experts_are_combined():
    torch.manual_seed(0)
    config = LoraConfig(r=2, init_lora_weights=False, target_parameters=["0.weight"])
    model = get_peft_model(nn.Sequential(Experts()), config, "first").eval()
    model.add_adapter("second", config)
    model.add_weighted_adapter(["first", "second"], [1.0, -0.5], "both", "cat")
    first, second, both = (updates(model, name)["0.weight"] for name in model.adapters)
    torch.testing.assert_close(both, first - 0.5 * second, rtol=0, atol=1e-5)


def test_a_head_of_one_adapter_is_taken_over():
    model = make_model(lora(modules_to_save=["lm_head"]), lora())
    model.adapter("first").saved["lm_head"].weight.data.zero_()
    model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "both")
    assert model.adapter("both").saved["lm_head"].weight.abs().max() == 0


@pytest.mark.parametrize(
    ("second", "names", "weights", "said"),
    [
        (lora(), ["first"], [1.0, 2.0], "1 adapters and 2 weights"),
        (lora(), [], [], "0 adapters and 0 weights"),
        (lora(), ["first", "secnd"], [1.0, 1.0], "Did you mean second"),
        (
            IA3Config(task_type="CAUSAL_LM"),
            ["first", "second"],
            [1.0, 1.0],
            "IA3 and LORA cannot be combined",
        ),
        (lora(modules_to_save=["lm_head"]), ["second", "second"], [1.0, 1.0], "their own lm_head"),
    ],
)
def test_what_cannot_be_combined_is_refused(second, names, weights, said):
    model = make_model(lora(), second)
    with pytest.raises(ConfigError, match=said):
        model.add_weighted_adapter(names, weights, "both", "cat")
    assert list(model.adapters) == ["first", "second"]


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        BitFitConfig(task_type="CAUSAL_LM"),
    ],
)
def test_other_methods_are_not_combined_by_weights(config):
    model = make_model(config, config)
    with pytest.raises(ConfigError, match="cannot be combined by weights"):
        model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "both")


def test_a_name_that_is_taken_is_an_error():
    model = make_model(lora(), lora())
    with pytest.raises(ConfigError, match="an adapter 'second' already"):
        model.add_weighted_adapter(["first", "second"], [1.0, 1.0], "second")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", None])
def test_weights_are_finite_numbers(weight):
    model = get_peft_model(LLAMA.model(), lora(), "one")
    with pytest.raises(ConfigError, match="weights must be finite numbers"):
        model.add_weighted_adapter(["one"], [weight], "both")


def test_a_combination_made_while_merged_is_of_the_base_models_own_layers():
    config = LoraConfig(init_lora_weights=False, target_modules=["query"], bias="lora_only")
    model = get_peft_model(BERT.model(), config, "one")
    for layer in model.adapter("one").layers.values():
        torch.nn.init.normal_(layer.bias)
    adapted = model(IDS).logits
    model.merge_adapter()
    model.add_weighted_adapter(["one"], [1.0], "same")
    model.unmerge_adapter()
    model.set_adapter("same")
    torch.testing.assert_close(model(IDS).logits, adapted, rtol=0, atol=1e-5)
