"""A causal decoder's own code, run on packed rows, with the adapters of each row.

Virtual tokens stand in the batch once for all rows of their adapter, and what runs behind the
backbone sees the tokens that have a label, and no others.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from graft.adapt.compose import IGNORE
from graft.adapt.model import PeftModel
from graft.adapt.recomputation import route_recomputation
from graft.adapt.routing import RowGroup
from graft.adapt.structure import cache_owner, input_embeddings, is_causal
from graft.packing.attention import Unpackable, attending_by_segment, attention_configs
from graft.packing.layout import Layout
from graft.packing.loss import Head, chunked_cross_entropy

__all__ = ["PackedForward", "Unpackable"]

_CHUNK_BYTES = 2**26  # of a chunk's logits in fp32


class PackedForward:
    """The loss of packed rows under a model's adapters.

    Args:
        model: A causal language model with adapters.

    Raises:
        Unpackable: Its layers are not all attention that graft can stand in for.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.base: Any = model.base_model
        if not is_causal(self.base):
            raise Unpackable(f"{type(self.base).__name__} is no causal decoder.")
        self.backbone: Any = cache_owner(self.base)
        self.configs = attention_configs(self.base)
        self._found: dict[tuple[str, ...], list[Tensor]] = {}
        names = inspect.signature(self.backbone.forward).parameters
        kinds = {p.kind for p in names.values()}
        if "position_ids" not in names or inspect.Parameter.VAR_KEYWORD not in kinds:
            raise Unpackable(f"{type(self.backbone).__name__} takes no positions, or no more.")

    def loss(
        self,
        rows: Sequence[Tensor],
        labels: Sequence[Tensor],
        weights: Sequence[float] | None = None,
        adapter_names: Sequence[str | Sequence[str]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the rows' cross entropies.

        Args:
            rows: Ids of each row [T].
            labels: Of each row [T], as transformers takes them: -100 where nothing is learned. The
                first token's is learned by nothing, as nothing stands before it.
            weights: Of each row's labels in the sum; None: 1.
            adapter_names: As in `PeftModel.forward`.

        Returns:
            The sum, and for each row the sum of its cross entropies [B], without a gradient.
        """
        order, groups = self.model.route(adapter_names, len(rows))
        rows, labels = [rows[i] for i in order], [labels[i] for i in order]
        each = [1.0] * len(rows) if weights is None else [weights[i] for i in order]
        prompts, prefixes = self._virtual_tokens(groups)
        counts = [0 if prompt is None else len(prompt) for prompt in prompts]
        layout = Layout([len(row) for row in rows], groups, counts, prefixes)
        hidden = self._hidden(layout, rows, [p for p in prompts if p is not None])
        kept, targets, row_of = _labelled(layout, labels)
        device = self.base.device
        target_weights = torch.tensor(each)[row_of].to(device)
        sums, losses = [], []
        at = 0
        for group in groups:  # a chunk belongs to one group
            inside = (row_of >= group.rows.start) & (row_of < group.rows.stop)
            count = int(inside.sum())
            piece = slice(at, at + count)
            at += count
            if not count:
                continue
            with self._head(hidden, group.adapters) as head:
                shown = hidden.last_hidden_state[0].index_select(0, kept[piece].to(device))
                total, own = chunked_cross_entropy(
                    shown,
                    targets[piece].to(device),
                    target_weights[piece],
                    head,
                    self._head_parameters(shown, head, group.adapters),
                    self._chunk,
                )
            sums.append(total)
            losses.append(own)
        by_row = torch.zeros(len(rows), device=device).index_add_(
            0, row_of.to(device), torch.cat(losses)
        )
        unsorted = torch.empty_like(by_row)
        unsorted[torch.tensor(order, device=device)] = by_row
        return torch.stack(sums).sum(), unsorted

    @property
    def _chunk(self) -> int:
        vocabulary = self.base.get_output_embeddings().weight.shape[0]
        return min(max(_CHUNK_BYTES // (4 * vocabulary), 128), 8192)

    def _virtual_tokens(
        self, groups: Sequence[RowGroup]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Of each group its virtual tokens [N, D] and its prefix [L, 2, H, N, K], or None."""
        if not self.model.has_virtual_tokens(groups):
            return [None] * len(groups), [None] * len(groups)
        composition = self.model.compose(groups, text=0)
        return composition.prompts, composition.prefixes

    def _hidden(self, layout: Layout, rows: Sequence[Tensor], prompts: Sequence[Tensor]) -> Any:
        """What the backbone returns for the packed rows."""
        ids = torch.empty(1, layout.length, dtype=torch.long)
        positions = torch.empty_like(ids)
        given = iter(rows)
        for segment in layout.segments:
            # Virtual tokens stand in as some id; their embeddings are written over.
            ids[0, segment.tokens] = 0 if segment.is_prompt else next(given)
            first = layout.first_position(segment)
            positions[0, segment.tokens] = torch.arange(first, first + segment.length)
        if self.model.training:
            route_recomputation(self.base, self.model.router)
        device = self.base.device
        with (
            self.model.router.use(
                layout.groups, packed=True, within=lambda: attending_by_segment(self.configs)
            ),
            self._writing(layout, prompts),
        ):
            return self.backbone(
                input_ids=ids.to(device),
                position_ids=positions.to(device),
                use_cache=False,
                return_dict=True,
                packed=layout,
            )

    @contextmanager
    def _writing(self, layout: Layout, prompts: Sequence[Tensor]) -> Iterator[None]:
        """Write virtual tokens over the embeddings that stand in for them, inside the block."""

        def write(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            pieces, at, vectors = [], 0, iter(prompts)
            for segment in layout.segments:
                if segment.is_prompt:
                    pieces += [out[0, at : segment.tokens.start], next(vectors).to(out.dtype)]
                    at = segment.tokens.stop
            return torch.cat([*pieces, out[0, at:]])[None]

        if not prompts:
            yield
            return
        handle = input_embeddings(self.base).register_forward_hook(write)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _head(self, outputs: Any, adapters: tuple[str, ...]) -> Iterator[Head]:
        """What stands behind the backbone as a function: the model's own forward without it."""
        shown: list[Tensor] = []

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return type(outputs)(**{**outputs, "last_hidden_state": shown.pop()})

        def head(hidden: Tensor) -> Tensor:
            shown.append(hidden[None])
            ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            with self.model.router.use([RowGroup(slice(0, 1), adapters)]):
                return self.base(input_ids=ids, return_dict=True).logits[0]

        own = self.backbone.__dict__.get("forward")
        self.backbone.forward = stand_in
        try:
            yield head
        finally:
            del self.backbone.forward
            if own is not None:
                self.backbone.forward = own

    def _head_parameters(
        self, hidden: Tensor, head: Head, adapters: tuple[str, ...]
    ) -> list[Tensor]:
        """What `adapters` train behind the backbone: the leaves of the head's own graph."""
        if adapters not in self._found:
            token = hidden[:1].detach()
            with torch.enable_grad():
                self._found[adapters] = _leaves(head(token))
        return self._found[adapters]


def _labelled(layout: Layout, labels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each label: the token that predicts it, itself, and its row."""
    kept, targets, row_of = [], [], []
    given = iter(enumerate(labels))
    for segment in layout.segments:
        if segment.is_prompt:
            continue
        row, own = next(given)
        places = (own[1:] != IGNORE).nonzero()[:, 0]
        kept.append(places + segment.tokens.start)
        targets.append(own[1:][places])
        row_of.append(torch.full_like(places, row))
    return torch.cat(kept), torch.cat(targets), torch.cat(row_of)


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
