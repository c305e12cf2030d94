"""Modules of every kind, transformers or not: convolutions, attention, experts, plain layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import graft
from conformance.families import Family
from graft.config import TaskType

from .cases import Model
from .oracle import (
    PEFT_WARNS,
    assert_same,
    copy_weights,
    gradients,
    make_batch,
    outputs,
    own_tensors,
    randomise,
)

pytestmark = PEFT_WARNS


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.size = (5,)


class Convolutions(nn.Module):
    """A convolution over each number of axes."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(2, 3, 2)
        self.image = nn.Conv2d(3, 4, (2, 3), stride=(1, 2), padding=1)
        self.line = nn.Conv1d(4, 5, 3, padding="same")  # PEFT forgets a dilation
        self.size = (2, 2, 5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.volume(x).squeeze(2)
        return self.line(torch.tanh(self.image(x)).flatten(2))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.size = (4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x.flip(1), x.flip(1), need_weights=False)[0]


class Experts(nn.Module):
    """Two matrices per expert, kept as one parameter each; every expert sees every row."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 7, 5))
        self.down = nn.Parameter(torch.randn(3, 4, 7))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.einsum("eoi,bi->ebo", self.up, x))
        return torch.einsum("eoi,ebi->bo", self.down, hidden)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()
        self.size = (5,)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x)


LORA, IA3 = "LoraConfig", "IA3Config"
CASES = {
    "lora-plain": (Plain, LORA, {"target_modules": ["0", "2"]}),
    "lora-all-linear": (Plain, LORA, {"target_modules": "all-linear"}),
    "ia3-plain": (Plain, IA3, {"target_modules": ["0", "2"], "feedforward_modules": ["2"]}),
    "lora-convolutions": (Convolutions, LORA, {"target_modules": ["volume", "image", "line"]}),
    "dora-convolutions": (
        Convolutions,
        LORA,
        {"target_modules": ["image", "line"], "use_dora": True},
    ),
    "ia3-convolutions": (
        Convolutions,
        IA3,
        {"target_modules": ["volume", "image"], "feedforward_modules": ["image"]},
    ),
    "lora-experts": (Mixture, LORA, {"target_parameters": ["experts.up", "experts.down"]}),
    "lora-one-expert-matrix": (Mixture, LORA, {"target_parameters": ["experts.down"]}),
    "lora-experts-patterns": (
        Mixture,
        LORA,
        {
            "target_parameters": ["experts.up", "experts.down"],
            "use_rslora": True,
            "lora_alpha": 5,
        },
    ),
}


@pytest.mark.parametrize(("make", "kind", "options"), CASES.values(), ids=list(CASES))
def test_same_weights_same_values_and_gradients(
    make: Callable[[], Any], kind: str, options: dict[str, Any]
) -> None:
    rank = {"r": 2} if kind == LORA else {}
    theirs, ours = (attached(library, make, kind, {**rank, **options}) for library in (peft, graft))
    state = made_up(own_tensors(peft.get_peft_model_state_dict(theirs)))
    peft.set_peft_model_state_dict(theirs, state)
    graft.set_peft_model_state_dict(ours, state)
    assert_same(graft.get_peft_model_state_dict(ours), state)

    x = torch.randn(3, *ours.size, generator=torch.Generator().manual_seed(2))
    found, expected = ours(x), theirs(x)
    assert_same({"output": found}, {"output": expected})
    F.mse_loss(found, torch.ones_like(found)).backward()
    F.mse_loss(expected, torch.ones_like(expected)).backward()
    assert_same(gradients_of(ours), gradients_of(theirs))


def test_attention() -> None:
    theirs, ours = (
        attached(library, Attention, LORA, {"r": 2, "target_modules": ["attention"]})
        for library in (peft, graft)
    )
    state = made_up(own_tensors(peft.get_peft_model_state_dict(theirs)))
    # In a forward PEFT adds this update to the weight twice.
    state["base_model.model.attention.base_layer.out_proj.lora_B.weight"].zero_()
    peft.set_peft_model_state_dict(theirs, state)
    graft.set_peft_model_state_dict(ours, state)
    assert_same(graft.get_peft_model_state_dict(ours), state)
    x = torch.randn(3, *ours.size, generator=torch.Generator().manual_seed(2))
    assert_same({"output": ours(x)}, {"output": theirs(x)})


def made_up(state: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Values for the keys and shapes of `state`."""
    dice = torch.Generator().manual_seed(seed)
    return {key: 0.5 * torch.randn(state[key].shape, generator=dice) for key in sorted(state)}


def attached(library: Any, make: Callable[[], Any], kind: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return library.get_peft_model(make(), getattr(library, kind)(**options)).eval()


def gradients_of(model: Any) -> dict[str, Tensor]:
    library = peft if isinstance(model, peft.PeftModel) else graft
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return own_tensors(library.get_peft_model_state_dict(model, {**model.state_dict(), **grads}))


MIXTRAL = Model(
    Family(
        "MixtralConfig",
        "decoder",
        {"num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 3},
    ),
    TaskType.CAUSAL_LM,
    ["q_proj", "v_proj"],
    [],
    [],
)


def test_experts_of_a_language_model() -> None:
    options = {
        "task_type": "CAUSAL_LM",
        "r": 2,
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    }
    theirs, ours = (
        library.get_peft_model(MIXTRAL.make(), library.LoraConfig(**options)).eval()
        for library in (peft, graft)
    )
    randomise(theirs)
    copy_weights(theirs, ours)
    batch = make_batch(MIXTRAL)
    expected, found = outputs(theirs, batch), outputs(ours, batch)
    expected["loss"].backward()
    found["loss"].backward()
    assert_same(found, expected)
    assert_same(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("kind", ["cat", "svd", "linear"])
def test_weighted_combinations_of_lora(kind: str) -> None:
    models = []
    for library in (peft, graft):
        config = library.LoraConfig(r=2, lora_alpha=3, target_modules=["0", "2"])
        torch.manual_seed(0)
        model = library.get_peft_model(Plain(), config, "first").eval()
        model.add_adapter("second", config)
        for name, seed in (("first", 1), ("second", 2)):
            state = library.get_peft_model_state_dict(model, adapter_name=name)
            library.set_peft_model_state_dict(model, made_up(state, seed), adapter_name=name)
        # PEFT's "linear" adds A and B apart, which is another update: its "cat" is the exact one.
        theirs = "cat" if kind == "linear" and library is peft else kind
        model.add_weighted_adapter(["first", "second"], [0.5, 1.5], "both", combination_type=theirs)
        (model.base_model if library is peft else model).set_adapter("both")
        models.append(model)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    assert_same({"output": models[1](x)}, {"output": models[0](x)})
