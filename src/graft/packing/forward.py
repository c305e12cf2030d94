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
from graft.packing.attention import (
    Unpackable,
    attending_by_segment,
    attention_configs,
    refuse_convolutions,
)
from graft.packing.head import Labelled, LanguageHead
from graft.packing.layout import Layout

__all__ = ["PackedForward", "Unpackable"]


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
        if getattr(self.base.config.get_text_config(), "output_router_logits", False):
            raise Unpackable(f"{type(self.base).__name__} adds its routers' loss to the labels'.")
        self.backbone: Any = cache_owner(self.base)
        refuse_convolutions(self.backbone)
        self.configs = attention_configs(self.base)
        self.head = LanguageHead(model, self.backbone, _packed_tokens)
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
        each = None if weights is None else [weights[i] for i in order]
        prompts, prefixes = self._virtual_tokens(groups)
        counts = [0 if prompt is None else len(prompt) for prompt in prompts]
        layout = Layout([len(row) for row in rows], groups, counts, prefixes)
        hidden = self._hidden(layout, rows, [p for p in prompts if p is not None])
        device = self.base.device
        labelled = Labelled(*_labelled(layout, labels), each, device)
        shown = hidden.last_hidden_state[0].index_select(0, labelled.places)
        total, by_row = self.head.loss(hidden, shown, groups, labelled)
        unsorted = torch.empty_like(by_row)
        unsorted[torch.tensor(order, device=device)] = by_row
        return total, unsorted

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


def _labelled(layout: Layout, labels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Of each row the tokens that predict a label, and those labels."""
    places, targets = [], []
    rows = [segment for segment in layout.segments if not segment.is_prompt]
    for segment, own in zip(rows, labels, strict=True):
        found = (own[1:] != IGNORE).nonzero()[:, 0]
        places.append(found + segment.tokens.start)
        targets.append(own[1:][found])
    return places, targets


def _packed_tokens(hidden: Tensor) -> dict[str, Any]:
    return {"input_ids": torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)}
