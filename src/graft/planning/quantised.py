"""Quantised linear layers as a plan sees them: bytes by formula, calls as those of bitsandbytes.

4 bits: a code of half a byte for each number, and a scale in fp32 for each block of 64. 8 bits: a
byte, and a scale in fp32 for each output. The weight is made anew in the model's own dtype wherever
a product needs it; with 8 bits the forward product itself is one of integers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from graft.adapt.structure import head_paths
from graft.config import TaskType

__all__ = ["quantise", "quantised_weights"]

Bits = Literal[4, 8]

_BLOCK = 64  # numbers that share a scale, of 4 bits


def quantise(base: PreTrainedModel, task_type: TaskType, bits: Bits) -> None:
    """Have the linear layers of `base` compute as quantised ones; its heads stay as they are."""
    heads = (*head_paths(base, task_type),)
    output = base.get_output_embeddings()
    for path, module in base.named_modules():
        is_head = module is output or any(f"{path}.".startswith(f"{head}.") for head in heads)
        if type(module) is nn.Linear and not is_head:
            module.__class__ = _CLASSES[bits]


def quantised_weights(base: nn.Module) -> dict[int, int]:
    """Bytes of each quantised weight, by the id of the parameter."""
    layers = [module for module in base.modules() if isinstance(module, _Quantised)]
    return {id(layer.weight): layer.stored_bytes for layer in layers}


class _Quantised(nn.Linear):
    @property
    def stored_bytes(self) -> int:
        raise NotImplementedError


class _Of4Bits(_Quantised):
    @property
    def stored_bytes(self) -> int:
        return -(-self.weight.numel() // 2) + 4 * -(-self.weight.numel() // _BLOCK)

    def forward(self, input: Tensor) -> Tensor:
        return _Product4.apply(input, self.weight, self.bias)


class _Of8Bits(_Quantised):
    @property
    def stored_bytes(self) -> int:
        return self.weight.numel() + 4 * self.out_features

    def forward(self, input: Tensor) -> Tensor:
        return _Product8.apply(input, self.weight, self.bias)


_CLASSES: dict[Bits, type[_Quantised]] = {4: _Of4Bits, 8: _Of8Bits}


class _Product4(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.clone(), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return grad_outputs[0] @ weight.clone(), None, None


class _Product8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        codes = x.to(torch.int8)
        product = F.linear(x, weight, bias)  # of the codes, in truth, into int32
        sums = product.to(torch.int32)
        del codes
        return sums.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        _, weight = ctx.saved_tensors
        return grad_outputs[0] @ weight.clone(), None, None
