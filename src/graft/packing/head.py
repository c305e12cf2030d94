"""The head of a language model as a function of hidden states, and its loss where there is a label.

What stands behind a model's backbone is run by the model's own forward, in which something that
hands out hidden states stands in for the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from graft.adapt.model import PeftModel
from graft.adapt.routing import RowGroup
from graft.packing.loss import Head, chunked_cross_entropy

__all__ = ["Labelled", "LanguageHead"]

_CHUNK_BYTES = 2**26  # of a chunk's logits in fp32


class Labelled:
    """The labels of a batch's rows.

    Args:
        places: Of each row, the tokens that predict a label.
        labels: Of each row, those labels.
        weights: Of each row's labels in the sum; None: 1.

    Attributes:
        places: [M], of all rows.
        labels: [M], ids.
        rows: [M], number of the row.
        weights: [M], fp32.
        numbers: How many each row has.
    """

    def __init__(
        self,
        places: Sequence[Tensor],
        labels: Sequence[Tensor],
        weights: Sequence[float] | None,
        device: torch.device,
    ) -> None:
        self.numbers = [len(own) for own in places]
        each = torch.ones(len(places)) if weights is None else torch.tensor(weights)
        rows = torch.arange(len(places)).repeat_interleave(torch.tensor(self.numbers))
        self.rows = rows.to(device)
        self.weights = each[rows].to(device)
        self.places = torch.cat(list(places)).to(device)
        self.labels = torch.cat(list(labels)).to(device)


class LanguageHead:
    """What stands behind the backbone of a language model with adapters.

    Args:
        model: The model.
        backbone: The part of it that returns the hidden states which the head reads.
        inputs: Makes the arguments with which the base model runs its head on M tokens.
    """

    def __init__(
        self, model: PeftModel, backbone: Any, inputs: Callable[[Tensor], dict[str, Any]]
    ) -> None:
        self.model = model
        self.base: Any = model.base_model
        self.backbone = backbone
        self.inputs = inputs
        self._found: dict[tuple[str, ...], list[Tensor]] = {}

    def loss(
        self, outputs: Any, hidden: Tensor, groups: Sequence[RowGroup], labelled: Labelled
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the cross entropies, and its parts by row [B], without a gradient.

        Args:
            outputs: Of the backbone.
            hidden: [M, D], its hidden states at the tokens of `labelled`.
            groups: The row groups.
            labelled: The labels.
        """
        sizes = [sum(labelled.numbers[group.rows]) for group in groups]
        parts = (own.split(sizes) for own in (hidden, labelled.labels, labelled.weights))
        sums, losses = [], []
        for group, shown, labels, weights in zip(groups, *parts, strict=True):
            if not len(shown):  # a chunk belongs to one group
                continue
            with self._standing_in(outputs, group.adapters) as head:
                parameters = self._parameters(shown, head, group.adapters)
                total, own = chunked_cross_entropy(
                    shown, labels, weights, head, parameters, self._chunk
                )
            sums.append(total)
            losses.append(own)
        own = torch.cat(losses)
        by_row = own.new_zeros(len(labelled.numbers)).index_add_(0, labelled.rows, own)
        return torch.stack(sums).sum(), by_row

    @property
    def _chunk(self) -> int:
        vocabulary = self.base.get_output_embeddings().weight.shape[0]
        return min(max(_CHUNK_BYTES // (4 * vocabulary), 128), 8192)

    @contextmanager
    def _standing_in(self, outputs: Any, adapters: tuple[str, ...]) -> Iterator[Head]:
        """The head under `adapters` as a function, inside the block."""
        shown: list[Tensor] = []

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return type(outputs)(**{**outputs, "last_hidden_state": shown.pop()})

        def head(hidden: Tensor) -> Tensor:
            shown.append(hidden[None])
            with self.model.router.use([RowGroup(slice(0, 1), adapters)]):
                return self.base(**self.inputs(hidden), return_dict=True).logits.squeeze(0)

        own = self.backbone.__dict__.get("forward")
        self.backbone.forward = stand_in
        try:
            yield head
        finally:
            del self.backbone.forward
            if own is not None:
                self.backbone.forward = own

    def _parameters(self, hidden: Tensor, head: Head, adapters: tuple[str, ...]) -> list[Tensor]:
        """What `adapters` train behind the backbone: the leaves of the head's own graph."""
        if adapters not in self._found:
            token = hidden[:1].detach()
            with torch.enable_grad():
                self._found[adapters] = _leaves(head(token))
        return self._found[adapters]


def _leaves(output: Tensor) -> list[Tensor]:
    """The leaves that `output` is differentiable in."""
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn]
    found: list[Tensor] = []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [after for after, _ in node.next_functions]
    return found
