"""Whether a model computes on packed rows what it computes on padded ones: tried, not looked up.

No table says which architectures can be packed. Two short rows are run both ways before a
training begins: their results must agree, and must not change with what the other row holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graft.adapt.compose import IGNORE
from graft.adapt.model import PeftModel
from graft.adapt.structure import is_encoder_decoder
from graft.packing.attention import Unpackable
from graft.packing.forward import PackedForward
from graft.packing.layers import PackedLayers, without_cache
from graft.packing.pairs import PackedPairs

__all__ = ["packed_forward", "proven_forward", "proven_layers"]

# Largest difference that rounding makes, as a share of the results' size.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
_LENGTHS = (7, 4)

Results = Callable[[Tensor, Tensor], Tensor]  # ids and mask [2, T] -> results of each row [2, ...]


def packed_forward(model: PeftModel) -> PackedForward | PackedPairs:
    """What would compute the loss of packed rows, as far as the build of a language model tells.

    Raises:
        Unpackable: With the reason why batches of this model have to be padded.
    """
    return PackedPairs(model) if is_encoder_decoder(model.base_model) else PackedForward(model)


def proven_forward(model: PeftModel) -> PackedForward | PackedPairs:
    """What computes the loss of packed rows, for a language model.

    Raises:
        Unpackable: With the reason why batches of this model have to be padded.
    """
    pairs = is_encoder_decoder(model.base_model)
    packed = packed_forward(model)

    def on_packed(ids: Tensor, mask: Tensor) -> Tensor:
        rows = [row[: int(own.sum())] for row, own in zip(ids, mask, strict=True)]
        _, losses = packed.loss(rows, rows)
        return losses[:, None]

    def on_padded(ids: Tensor, mask: Tensor) -> Tensor:
        device = packed.base.device
        ids, mask = ids.to(device), mask.to(device)
        labels = ids.masked_fill(mask == 0, IGNORE)
        given = {"input_ids": ids, "attention_mask": mask, **without_cache(model)}
        if pairs:  # labels, so that it says itself what its decoder reads
            logits = model(**given, labels=labels).logits
        else:
            logits, labels = model(**given).logits[:, :-1], labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, reduction="none"
        )
        return losses.sum(1, keepdim=True)

    _prove(model, on_packed, on_padded)
    return packed


def proven_layers(model: PeftModel) -> PackedLayers:
    """What runs a model's layers on packed rows, whatever its head is.

    Raises:
        Unpackable: With the reason why batches of this model have to be padded.
    """
    packed = PackedLayers(model)

    def on_padded(ids: Tensor, mask: Tensor) -> Tensor:
        device = packed.base.device
        ids, mask = ids.to(device), mask.to(device)
        given = {"input_ids": ids, "attention_mask": mask, **without_cache(model)}
        outputs: Mapping[str, Any] = model(**given)
        first = next(value for value in outputs.values() if isinstance(value, Tensor))
        if first.shape[:2] == mask.shape:  # results of tokens; those of pads are nobody's
            first = first * mask.view(*mask.shape, *(1,) * (first.ndim - 2))
        return first.flatten(1)

    def on_packed(ids: Tensor, mask: Tensor) -> Tensor:
        with packed.packing(mask.to(packed.base.device)):
            return on_padded(ids, mask)

    _prove(model, on_packed, on_padded)
    return packed


@torch.no_grad()
def _prove(model: PeftModel, on_packed: Results, on_padded: Results) -> None:
    base: Any = model.base_model
    name = type(base).__name__
    mask = torch.tensor([[1] * n + [0] * (_LENGTHS[0] - n) for n in _LENGTHS])
    # Ids that are special to no model: from the middle of the vocabulary.
    size = base.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(mask.numel()).view_as(mask) * 7 % max(size // 2, 1)) + size // 4
    other = ids.clone()
    other[1] = ids[1].roll(1) + 1
    end = getattr(base.config, "eos_token_id", None)
    if isinstance(end, int) and end < size:  # which some classifiers look for
        for row, length in enumerate(_LENGTHS):
            ids[row, length - 1] = other[row, length - 1] = end
    ids, other = ids * mask, other * mask
    was_training = model.training
    model.eval()
    try:
        try:
            wanted = on_padded(ids, mask).double()
            got, again = on_packed(ids, mask).double(), on_packed(other, mask).double()
        except Unpackable:
            raise
        except Exception as error:  # whatever code of a model's own makes of such a batch
            raise Unpackable(f"{name} does not run on packed rows: {error}") from error
    finally:
        model.train(was_training)
    # Bit for bit, but for layers whose kernels depend on how many tokens there are (experts).
    noise = max(2 * torch.finfo(base.dtype).eps, 16 * torch.finfo(torch.float32).eps)
    if (got[0] - again[0]).norm() > noise * got[0].norm():
        raise Unpackable(f"In {name} packed rows see each other.")
    error = (got - wanted).norm() / wanted.norm().clamp(min=1e-12)
    if not error <= _ROUNDING[base.dtype]:
        raise Unpackable(f"{name} computes {error:.1%} otherwise on packed rows.")
