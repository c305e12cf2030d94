"""Lean norms and gates equal the model's own, keep less, and are gone after the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from graft.training.lean import lean_layers

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Architecture, what its config needs besides, and its norms and gates that are replaced.
MODELS: list[tuple[str, dict[str, Any], int]] = [
    ("LlamaForCausalLM", {}, 5 + 2),
    ("Qwen3ForCausalLM", {"head_dim": 8}, 9 + 2),  # norms of queries and keys
    ("Gemma2ForCausalLM", {"head_dim": 8}, 9 + 2),  # 1 + weight, gelu
    ("Olmo2ForCausalLM", {}, 9 + 2),  # rounded after the weight
    ("Phi3ForCausalLM", {}, 5),  # gate and up are one layer
    ("CohereForCausalLM", {}, 2),  # its norms are of another kind
]


def make(name: str, more: dict[str, Any], dtype: torch.dtype) -> Any:
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**SMALL, **more)).to(dtype).requires_grad_(False)
    for parameter in model.parameters():  # norms start at ones
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def results(model: Any, embeds: Tensor) -> tuple[Tensor, Tensor]:
    embeds = embeds.clone().requires_grad_()
    logits = model(inputs_embeds=embeds, use_cache=False).logits
    (grad,) = torch.autograd.grad(logits.float().sin().sum(), embeds)
    return logits.detach(), grad


def replaced(model: nn.Module) -> int:
    return sum("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "more", "count"), MODELS, ids=[name for name, *_ in MODELS])
def test_results_and_gradients_are_the_models_own(name, more, count, dtype):
    model = make(name, more, dtype)
    embeds = torch.randn(2, 7, 32).to(dtype)
    wanted = results(model, embeds)
    with lean_layers(model):
        assert replaced(model) == count
        found = results(model, embeds)
    assert replaced(model) == 0
    for own, reference in zip(found, wanted, strict=True):
        assert (own - reference).norm() <= 1e-6 * reference.norm()  # in bf16 too: rounded alike


def test_less_is_kept_for_the_backward_pass():
    def kept(module: Callable[[Tensor], Tensor]) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if not tensor._base and tensor.shape[0] == 50:
                sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        x = torch.randn(50, 32, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = module(x)
        y.sum().backward()
        return sum(sizes.values())

    model = make("LlamaForCausalLM", {}, torch.bfloat16)
    norm = model.model.norm
    before = kept(norm)
    with lean_layers(model):
        assert kept(norm) == 50 * (2 * 32 + 4)
    assert before >= 50 * (4 * 32 + 4)


def test_what_is_trained_or_replaced_already_stays():
    model = make("LlamaForCausalLM", {}, torch.float32)
    model.model.norm.weight.requires_grad_(True)
    mlp = model.model.layers[0].mlp
    mlp.forward = forward = type(mlp).forward.__get__(mlp)
    with lean_layers(model):
        assert "forward" not in model.model.norm.__dict__
        assert mlp.forward is forward
        assert "forward" in model.model.layers[1].mlp.__dict__
    assert mlp.forward is forward


class Doubled(nn.Module):
    """Looks like an RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8), requires_grad=False)
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class WithGate(transformers.models.llama.modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(hidden_states if gate is None else hidden_states * gate)


class Broken(Doubled):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this")


@pytest.mark.parametrize("module", [Doubled(), WithGate(8), Broken(), nn.LayerNorm(8, bias=False)])
def test_what_computes_otherwise_stays(module):
    module.requires_grad_(False)
    before = torch.get_rng_state()
    with lean_layers(module):
        assert replaced(module) == 0
    assert torch.equal(torch.get_rng_state(), before)
