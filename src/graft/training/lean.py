"""Norms and gated feed-forwards of a frozen base model, as one autograd function each.

What autograd makes of a model's own code keeps an RMS norm's input in float32, and the activated
gate besides the gate. Here a norm keeps its input as it came and one number a token, and a gate is
activated again in the backward pass. Which modules are meant is told by what they hold, and what
they compute is tried on random numbers of their own kind; a module that computes otherwise stays
as it is.

Zhang and Sennrich, "Root Mean Square Layer Normalization", eq. 4; Shazeer, "GLU Variants Improve
Transformer", eq. 5 and 6.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd.function import once_differentiable

__all__ = ["lean_layers"]

# Largest difference that rounding makes, as a share of the results' size.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.01, torch.float16: 1e-3}
_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_GATED = ("gate_proj", "up_proj", "down_proj")


Function = Callable[[Tensor], Tensor]
Maker = Callable[[nn.Module], Function]  # of a module's lean forward


@contextmanager
def lean_layers(model: nn.Module) -> Iterator[None]:
    """Let the frozen norms and gated feed-forwards in `model` keep less, inside the block."""
    changed = []
    known: dict[Any, Maker | None] = {}
    for module in model.modules():
        kind = _kind(module)
        if kind is None:
            continue
        if kind not in known:
            known[kind] = _tried(module)
        make = known[kind]
        if make is not None:
            _replace(module, make(module))
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _replace(module: Any, function: Function) -> None:
    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())  # by whatever name
        return function(x)

    module.forward = forward


def _kind(module: nn.Module) -> Any:
    """What modules that compute alike have in common; None: not of those that are meant."""
    if "forward" in module.__dict__ or len(inspect.signature(module.forward).parameters) != 1:
        return None  # somebody else's already, or not of its input alone
    if _is_norm(module):
        weight: Any = module.weight
        return type(module), _epsilon(module), weight.dtype
    if _is_gated(module):
        act: Any = module.act_fn
        return type(module), type(act), repr(act)
    return None


def _tried(module: nn.Module) -> Maker | None:
    """What makes the lean forward of modules such as this one; None where none fits."""
    with unset_fake_temporarily(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return _norm_of(module) if _is_norm(module) else _gate_of(module)
        except Exception:  # whatever code of a model's own makes of so small a copy
            return None


# --- RMS norms ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rule:
    """How a norm scales what it has normalised.

    Attributes:
        one_more: By 1 + weight.
        wide: Before it is rounded to its input's number format.
    """

    one_more: bool
    wide: bool

    def scale(self, weight: Tensor) -> Tensor:
        weight = weight.float() if self.wide else weight
        return 1 + weight if self.one_more else weight


_RULES = [_Rule(one_more, wide) for one_more in (False, True) for wide in (False, True)]


def _is_norm(module: nn.Module) -> bool:
    own = dict(module.named_parameters())
    return (
        list(own) == ["weight"]
        and own["weight"].ndim == 1
        and not own["weight"].requires_grad
        and not any(module.children())
        and isinstance(_epsilon(module), float)
        and not isinstance(module, nn.LayerNorm)
    )


def _epsilon(module: nn.Module) -> Any:
    return next((getattr(module, name) for name in _EPSILONS if hasattr(module, name)), None)


def _norm_of(module: nn.Module) -> Maker | None:
    weight: Any = module.weight
    trial: Any = copy.copy(module)
    trial._parameters = {"weight": nn.Parameter(_random(8, like=weight), requires_grad=False)}
    x, grad = _random(5, 8, like=weight), _random(5, 8, like=weight)
    wanted = _with_gradient(type(module).forward, grad, trial, x)

    def make(rule: _Rule, norm: Any) -> Function:
        eps = _epsilon(norm)
        return lambda hidden_states: _Norm.apply(hidden_states, norm.weight, eps, rule)

    errors = {rule: _error(wanted, _with_gradient(make(rule, trial), grad, x)) for rule in _RULES}
    best = min(_RULES, key=lambda rule: errors[rule])
    return functools.partial(make, best) if errors[best] <= _ROUNDING[weight.dtype] else None


class _Norm(torch.autograd.Function):
    """scale * x / sqrt(mean(x^2) + eps) over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, rule: _Rule) -> Tensor:
        x_wide = x.float()
        inverse = x_wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.rule = rule
        normal = x_wide * inverse if x_wide is x else x_wide.mul_(inverse)
        scale = rule.scale(weight)
        return normal.mul_(scale).to(x.dtype) if rule.wide else normal.to(x.dtype).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        scale = ctx.rule.scale(weight)
        normal = x.float() * inverse
        grad = grad.float() * scale if ctx.rule.wide else (grad * scale).float()
        along = (grad * normal).sum(-1, keepdim=True).div_(-x.shape[-1])
        return grad.addcmul_(normal, along).mul_(inverse).to(x.dtype), None, None, None


# --- gated feed-forwards ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Activation:
    """What a gate goes through, and the gradient of it."""

    there: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]  # gradient, gate


_ACTIVATIONS = [
    _Activation(F.silu, torch.ops.aten.silu_backward),
    *(
        _Activation(
            functools.partial(F.gelu, approximate=how),
            functools.partial(torch.ops.aten.gelu_backward, approximate=how),
        )
        for how in ("none", "tanh")
    ),
]


def _is_gated(module: nn.Module) -> bool:
    names = dict(module.named_children())
    return all(isinstance(names.get(name), nn.Linear) for name in _GATED) and "act_fn" in names


def _gate_of(module: nn.Module) -> Maker | None:
    trial: Any = copy.copy(module)
    small = [nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)]
    trial._modules = {**module._modules, **dict(zip(_GATED, small, strict=True))}
    x, grad = torch.randn(5, 8), torch.randn(5, 8)
    wanted = _with_gradient(type(module).forward, grad, trial, x)

    def make(activation: _Activation, gated: Any) -> Function:
        return lambda x: gated.down_proj(
            _Gate.apply(gated.gate_proj(x), gated.up_proj(x), activation)
        )

    for activation in _ACTIVATIONS:
        found = _with_gradient(make(activation, trial), grad, x)
        if _error(wanted, found) <= _ROUNDING[torch.float32]:
            return functools.partial(make, activation)
    return None


class _Gate(torch.autograd.Function):
    """activation(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: _Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation.there(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        of_up = ctx.activation.there(gate).mul_(grad)
        return ctx.activation.back(grad * up, gate), of_up, None


# --- the trial ----------------------------------------------------------------------------------


def _random(*shape: int, like: Tensor) -> Tensor:
    return torch.randn(shape).to(like.dtype)


def _with_gradient(
    function: Callable[..., Tensor], grad: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor]:
    """What `function` makes of its last input, and that input's gradient."""
    with torch.enable_grad():
        *others, x = inputs
        x = x.clone().requires_grad_()
        y = function(*others, x)
        return y.detach(), torch.autograd.grad(y, x, grad)[0]


def _error(wanted: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> float:
    """Distance of the results, or of the gradients, as a share of their size: the larger one."""
    return max(
        ((b.double() - a.double()).norm() / a.double().norm()).item()
        for a, b in zip(wanted, found, strict=True)
    )
