"""Lean norms and gates equal the model's own, keep less, and are gone after the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from graft.training import lean
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


class WithoutEpsilon(Doubled):
    """Divides by the norm alone, which is told by small numbers only."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))


class Limited(transformers.models.llama.modeling_llama.LlamaMLP):
    """A gate that goes no further than 10, as DeepSeek-V4's; or not at all where it has none."""

    def __init__(self, limit: float | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(transformers.LlamaConfig(**SMALL))
        self.limit = limit
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return self.down_proj(self.act_fn(gate) * up)


class Scaled(Limited):
    """Has a number of its own that it learned."""

    def __init__(self) -> None:
        super().__init__(None)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Between(Limited):
    """Its limits are two numbers in one attribute."""

    def __init__(self, *limits: float) -> None:
        super().__init__(None)
        self.limits = limits

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(*self.limits)) * self.up_proj(x))


class WithTable(Doubled):
    """Has numbers that are no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(8))


class WithGate(transformers.models.llama.modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(hidden_states if gate is None else hidden_states * gate)


class Broken(Doubled):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this")


OTHERS = [
    Doubled(),
    WithoutEpsilon(),
    WithGate(8),
    Broken(),
    WithTable(),
    nn.LayerNorm(8, bias=False),
    Limited(10.0),
    Limited(16.0, torch.bfloat16),
    Scaled(),
]


@pytest.mark.parametrize("module", OTHERS, ids=lambda module: type(module).__name__)
def test_what_computes_otherwise_stays(module):
    module.requires_grad_(False)
    before = torch.get_rng_state()
    with lean_layers(module):
        assert replaced(module) == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_of_one_class_are_told_apart_by_their_numbers():
    modules = [Limited(None), Limited(10.0), Between(-1e9, 1e9), Between(-0.1, 0.1)]
    module = nn.ModuleList(modules).requires_grad_(False)
    with lean_layers(module):
        assert ["forward" in own.__dict__ for own in module] == [True, False, True, False]


def test_an_input_of_another_number_format_is_the_models_own_affair():
    model = make("LlamaForCausalLM", {}, torch.float16)
    norm, x = model.model.norm, torch.randn(3, 32)
    wanted = norm(x)
    with lean_layers(model):
        found = norm(x)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


def test_nothing_is_left_behind_by_a_model_that_fails_half_way(monkeypatch):
    model = make("LlamaForCausalLM", {}, torch.float32)

    def kind(module: nn.Module, own: Callable[[nn.Module], Any] = lean._kind) -> Any:
        if module is model.model.norm:
            raise RuntimeError("half way")
        return own(module)

    monkeypatch.setattr(lean, "_kind", kind)
    with pytest.raises(RuntimeError, match="half way"), lean_layers(model):
        pass
    assert replaced(model) == 0
