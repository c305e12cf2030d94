"""Outputs of the base model, given back in the shapes of the caller's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from transformers.loss.loss_utils import ForQuestionAnsweringLoss

from graft.adapt.compose import SPAN
from graft.adapt.composition import Composition
from graft.adapt.prefix import is_reading
from graft.adapt.routing import in_group_order

__all__ = ["in_row_order", "span_loss", "without_virtual_tokens"]

# Axes that count the text's positions, by the name of the output.
_TOKENS = ("logits", "start_logits", "end_logits", "last_hidden_state", "hidden_states")
_AXES = {**dict.fromkeys(_TOKENS, (1,)), "attentions": (2, 3)}
_ENCODER_DECODER_AXES = {
    "encoder_last_hidden_state": (1,),
    "encoder_hidden_states": (1,),
    "encoder_attentions": (2, 3),
    "cross_attentions": (3,),
}
# The same where the decoder reads the encoder's ids, as it does to classify.
_SAME_IDS_AXES = {
    **_ENCODER_DECODER_AXES,
    **dict.fromkeys((*_TOKENS, "decoder_hidden_states"), (1,)),
    "decoder_attentions": (2, 3),
    "cross_attentions": (2, 3),
}
_FLAT = "router_logits"  # [B * T, E], rows and tokens in one axis
_WITH_PREFIX = ("attentions", "decoder_attentions")  # the last axis counts the prefix's keys too


def without_virtual_tokens(
    outputs: Any, batch: Composition, encoder_decoder: bool, same_ids: bool
) -> Any:
    """`outputs` without the positions of virtual tokens, and without a cache that keeps nothing.

    Args:
        outputs: A `ModelOutput` of the base model.
        batch: The rows that it saw.
        encoder_decoder: Whether the base model has both.
        same_ids: Whether its decoder was given the encoder's ids.
    """

    def stripped(value: Tensor, name: str) -> Tensor:
        if name == _FLAT and batch.prompt_length:
            return batch.strip(value.view(-1, batch.length, value.shape[-1]), 1).flatten(0, 1)
        if name in _WITH_PREFIX:
            value = value[..., batch.prefix_length :]
        if not batch.prompt_length or (name == "logits" and value.ndim == 2):  # a class per row
            return value
        for axis in axes.get(name, ()):
            if axis == 3 and batch.left:  # keys of earlier forwards may stand on the right
                slid = value.shape[axis] < batch.length  # a cache that forgets has none of ours
                value = value if slid else value[..., batch.prompt_length :]
            elif value.shape[axis] == batch.length:
                value = batch.strip(value, axis)
        return value

    axes = (_SAME_IDS_AXES if same_ids else _ENCODER_DECODER_AXES) if encoder_decoder else _AXES
    kept = {name: _mapped(partial(stripped, name=name), outputs[name]) for name in outputs}
    if is_reading(kept.get("cache")):
        del kept["cache"]
    return type(outputs)(**kept)


def _mapped(rule: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_mapped(rule, item) for item in value)
    return rule(value) if isinstance(value, Tensor) else value


def span_loss(outputs: Any, given: Mapping[str, Any]) -> Any:
    """`outputs` of question answering with the loss of the span that the caller gave, if any.

    The base model's own would be a choice among the positions of virtual tokens too.
    """
    spans = [given.get(name) for name in SPAN]
    if any(span is None for span in spans):
        return outputs
    loss = ForQuestionAnsweringLoss(outputs.start_logits, outputs.end_logits, *spans)
    return type(outputs)(**{**outputs, "loss": loss})


def in_row_order(outputs: Any, order: Sequence[int], given: Mapping[str, Any]) -> Any:
    """`outputs` with the sorting of rows undone; the cache in `given` too, if it is not in them."""
    rows = len(order)
    inverse = sorted(range(rows), key=lambda index: order[index])
    cache = given.get("cache", given.get("past_key_values"))
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    if cache is not None and not any(value is cache for value in values):
        in_group_order(cache, inverse, rows)
    ordered = in_group_order(outputs, inverse, rows)
    if isinstance(ordered, Mapping) and ordered.get(_FLAT) is not None:
        ordered = type(ordered)(
            **{**ordered, _FLAT: _mapped(partial(_flat_in_order, order=inverse), outputs[_FLAT])}
        )
    return ordered


def _flat_in_order(value: Tensor, order: Sequence[int]) -> Tensor:
    return value.view(len(order), -1, value.shape[-1])[list(order)].flatten(0, 1)
