"""Outputs of the base model, given back in the shapes of the caller's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graft.adapt.compose import Composition
from graft.adapt.prefix import is_reading
from graft.adapt.routing import in_group_order

__all__ = ["in_row_order", "without_virtual_tokens"]

_PER_TOKEN = ("logits", "start_logits", "end_logits", "last_hidden_state", "hidden_states")
_ENCODER = ("encoder_last_hidden_state", "encoder_hidden_states")


def without_virtual_tokens(outputs: Any, batch: Composition, encoder_decoder: bool) -> Any:
    """`outputs` without the positions of virtual tokens, and without a cache that keeps nothing."""
    length, keys = batch.length, batch.length + batch.prefix_length

    def per_token(value: Tensor) -> Tensor:
        pooled = value.ndim < 2 or value.shape[1] != length
        return value if pooled or not batch.prompt_length else batch.strip(value)

    def per_pair(value: Tensor) -> Tensor:  # [B, heads, queries, keys]
        if value.shape[-1] == keys:
            value = value.narrow(-1, batch.prefix_length, length)
        return batch.strip(batch.strip(value, dim=-1), dim=-2) if batch.prompt_length else value

    def decoder_pair(value: Tensor) -> Tensor:
        return value[..., batch.prefix_length :]

    if encoder_decoder:
        rules: list[tuple[Sequence[str], Callable[[Tensor], Tensor]]] = [
            (_ENCODER, per_token),
            (("encoder_attentions",), per_pair),
            (("decoder_attentions",), decoder_pair),
        ]
    else:
        rules = [(_PER_TOKEN, per_token), (("attentions",), per_pair)]
    for names, rule in rules:
        for name in names:
            value = outputs.get(name)
            if value is not None:
                outputs[name] = _mapped(rule, value)
    if not is_reading(outputs.get("cache")):
        return outputs
    return type(outputs)(**{name: outputs[name] for name in outputs if name != "cache"})


def _mapped(rule: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_mapped(rule, item) for item in value)
    return value if value is None else rule(value)


def in_row_order(outputs: Any, order: Sequence[int]) -> Any:
    """Undo the sorting of rows in `outputs`, in place."""
    rows = len(order)
    inverse = sorted(range(rows), key=lambda index: order[index])
    for name in list(outputs.keys()):
        value = outputs[name]
        if name == "cache" and value is not None:
            value.reorder_cache(torch.tensor(inverse))
        elif name != "loss":
            outputs[name] = in_group_order(value, inverse, rows)
    return outputs
