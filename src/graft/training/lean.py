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
import math
from collections.abc import Callable, Iterator, Sequence
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
# Of the numbers in a trial: small enough to tell an epsilon, large enough to meet a limit.
_SCALES = (1e-3, 1.0, 100.0)
_WIDTH = 8  # of a module in a trial
_PLAIN = (int, float, str, tuple, list, type(None))

Function = Callable[[Tensor], Tensor]
Maker = Callable[[nn.Module], Function]  # of a module's lean forward


@contextmanager
def lean_layers(model: nn.Module) -> Iterator[None]:
    """Let the frozen norms and gated feed-forwards in `model` keep less, inside the block."""
    changed = []
    known: dict[Any, Maker | None] = {}
    try:
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
        return type(module), weight.dtype, _plain(module)
    if _is_gated(module):
        gated: Any = module
        act, weight = gated.act_fn, gated.gate_proj.weight
        return type(module), weight.dtype, _plain(module), type(act), repr(act), _plain(act)
    return None


def _plain(owner: Any) -> tuple[tuple[str, str], ...]:
    """The numbers and words by which what `owner` computes may differ from others of its class."""
    own = sorted(getattr(owner, "__dict__", {}).items())
    return tuple((name, repr(value)) for name, value in own if isinstance(value, _PLAIN))


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
        and next(module.buffers(), None) is None
        and isinstance(_epsilon(module), float)
        and not isinstance(module, nn.LayerNorm)
    )


def _epsilon(module: nn.Module) -> Any:
    return next((getattr(module, name) for name in _EPSILONS if hasattr(module, name)), None)


def _norm_of(module: nn.Module) -> Maker | None:
    weight: Any = module.weight
    trial: Any = copy.copy(module)
    numbers = torch.randn(_WIDTH).to(weight.dtype)
    trial._parameters = {"weight": nn.Parameter(numbers, requires_grad=False)}

    def make(rule: _Rule, norm: Any) -> Function:
        eps = _epsilon(norm)

        def forward(x: Tensor) -> Tensor:
            if x.dtype != norm.weight.dtype:  # which to keep is the model's to say
                return type(norm).forward(norm, x)
            return _Norm.apply(x, norm.weight, eps, rule)

        return forward

    return _agreeing(trial, weight.dtype, [functools.partial(make, rule) for rule in _RULES])


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
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    linear = all(isinstance(names.get(name), nn.Linear) for name in _GATED)
    return linear and "act_fn" in names and not own


def _gate_of(module: nn.Module) -> Maker | None:
    trial: Any = copy.copy(module)
    dtype = trial.gate_proj.weight.dtype
    dtype = dtype if dtype in _ROUNDING else torch.float32  # quantised
    sizes = [(_WIDTH, 6), (_WIDTH, 6), (6, _WIDTH)]
    small = [nn.Linear(*size, dtype=dtype) for size in sizes]
    trial._modules = {**module._modules, **dict(zip(_GATED, small, strict=True))}

    def make(activation: _Activation, gated: Any) -> Function:
        return lambda x: gated.down_proj(
            _Gate.apply(gated.gate_proj(x), gated.up_proj(x), activation)
        )

    return _agreeing(trial, dtype, [functools.partial(make, act) for act in _ACTIVATIONS])


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


def _agreeing(trial: nn.Module, dtype: torch.dtype, makers: Sequence[Maker]) -> Maker | None:
    """The one of `makers` that computes what `trial` does, at each scale; None where none does.

    Args:
        trial: A module of random weights.
        dtype: Of its weights.
        makers: Of lean forwards.
    """
    inputs = [(torch.randn(5, _WIDTH) * scale).to(dtype) for scale in _SCALES]
    grad = torch.randn(5, _WIDTH).to(dtype)
    own = functools.partial(type(trial).forward, trial)
    wanted = [_with_gradient(own, grad, x) for x in inputs]

    def error(make: Maker) -> float:
        found = [_with_gradient(make(trial), grad, x) for x in inputs]
        return max(map(_error, wanted, found))

    errors = [error(make) for make in makers]
    best = min(range(len(makers)), key=errors.__getitem__)
    return makers[best] if errors[best] <= _ROUNDING[dtype] else None


def _with_gradient(function: Function, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """What `function` makes of `x`, and that input's gradient."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        y = function(x)
        return y.detach(), torch.autograd.grad(y, x, grad)[0]


def _error(wanted: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> float:
    """Distance of the results, or of the gradients, as a share of their size: the larger one."""
    errors = [
        ((b.double() - a.double()).norm() / a.double().norm()).item()
        for a, b in zip(wanted, found, strict=True)
    ]
    return math.inf if any(map(math.isnan, errors)) else max(errors)
