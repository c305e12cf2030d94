"""Whether a model computes on packed rows what it computes on padded ones: tried, not looked up.

No table says which architectures can be packed. Two short rows are run both ways before a
training begins: their results must agree, and must neither change with what the other row holds nor
have a gradient there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graft.adapt.compose import IGNORE
from graft.adapt.model import PeftModel
from graft.adapt.structure import input_embeddings, is_encoder_decoder
from graft.packing.attention import Unpackable
from graft.packing.forward import PackedForward
from graft.packing.layers import PackedLayers, without_cache
from graft.packing.pairs import PackedPairs

__all__ = ["packed_forward", "proven_forward", "proven_layers"]

# Largest difference that rounding makes, as a share of the results' size.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
_LENGTHS = (7, 4)

Results = Callable[[Tensor, Tensor], Tensor]  # ids and mask [2, T] -> results of each row [2, ...]
Score = Callable[[Tensor, Tensor, int], Tensor]  # ids, mask, a row -> what it comes to, to derive


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

    def loss(
        ids: Tensor, mask: Tensor, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, Tensor]:
        rows = [row[: int(own.sum())] for row, own in zip(ids, mask, strict=True)]
        return packed.loss(rows, rows, weights)

    def on_packed(ids: Tensor, mask: Tensor) -> Tensor:
        return loss(ids, mask)[1][:, None]

    def score(ids: Tensor, mask: Tensor, row: int) -> Tensor:
        return loss(ids, mask, [float(row == i) for i in range(2)])[0]

    def on_padded(ids: Tensor, mask: Tensor) -> Tensor:
        device = packed.base.device
        ids, mask = ids.to(device), mask.to(device)
        labels = ids.masked_fill(mask == 0, IGNORE)
        given = {"input_ids": ids, "attention_mask": mask, **without_cache(model)}
        if not pairs:
            labels[:, 0] = IGNORE  # which a virtual token would predict
        outputs = model(**given, labels=labels)  # by which an encoder's decoder knows what to read
        logits = outputs.logits
        if not pairs:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, reduction="none"
        )
        mean = losses.sum() / (labels != IGNORE).sum()
        if not (outputs.loss - mean).abs() <= _ROUNDING[packed.base.dtype] * mean:
            name = type(packed.base).__name__
            raise Unpackable(f"{name} has a loss of more than its labels' cross entropy.")
        return losses.sum(1, keepdim=True)

    _prove(model, on_packed, on_padded, score)
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

    def score(ids: Tensor, mask: Tensor, row: int) -> Tensor:
        result = on_packed(ids, mask)[row].flatten()
        return result @ torch.linspace(1, 2, len(result)).to(result)

    _prove(model, on_packed, on_padded, score)
    return packed


@torch.no_grad()
def _prove(model: PeftModel, on_packed: Results, on_padded: Results, score: Score) -> None:
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
            sees = any(_sees_other(model, partial(score, ids, mask, row), row) for row in range(2))
        except Unpackable:
            raise
        except Exception as error:  # whatever code of a model's own makes of such a batch
            raise Unpackable(f"{name} does not run on packed rows: {error}") from error
    finally:
        model.train(was_training)
    # Bit for bit, but for layers whose kernels depend on how many tokens there are (experts).
    noise = max(2 * torch.finfo(base.dtype).eps, 16 * torch.finfo(torch.float32).eps)
    if sees or (got[0] - again[0]).norm() > noise * got[0].norm():
        raise Unpackable(f"In {name} packed rows see each other.")
    error = (got - wanted).norm() / wanted.norm().clamp(min=1e-12)
    if not error <= _ROUNDING[base.dtype]:
        raise Unpackable(f"{name} computes {error:.1%} otherwise on packed rows.")


def _sees_other(model: PeftModel, score: Callable[[], Tensor], row: int) -> bool:
    """Whether the score of one row has a gradient in the other one's embeddings."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    base: Any = model.base_model
    table: Any = input_embeddings(base)
    with ExitStack() as stack:
        for module in base.modules():  # an encoder's and a decoder's may be two of one weight
            if isinstance(module, nn.Embedding) and module.weight is table.weight:
                stack.callback(module.register_forward_hook(keep).remove)
        with torch.enable_grad():
            gradients = torch.autograd.grad(score(), seen, allow_unused=True)
    first, second = _LENGTHS
    for gradient in gradients:
        if gradient is None:
            continue
        if len(gradient) == 2:  # padded still, behind virtual tokens
            of_other = gradient[1 - row, -first:]
        else:
            packed = gradient[0, -first - second :]
            of_other = packed[first:] if row == 0 else packed[:first]
        if of_other.count_nonzero():
            return True
    return False
