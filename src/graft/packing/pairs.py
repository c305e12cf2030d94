"""An encoder-decoder's loss on packed rows.

Its layers run on packed rows (see `layers`), and its head where there is a label (see `head`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from graft.adapt.compose import IGNORE
from graft.adapt.model import PeftModel
from graft.packing.head import Labelled, LanguageHead
from graft.packing.layers import PackedLayers

__all__ = ["PackedPairs"]


class PackedPairs:
    """The loss of packed rows under an encoder-decoder's adapters.

    Args:
        model: A sequence-to-sequence language model with adapters.

    Raises:
        Unpackable: Its layers are not what `PackedLayers` can pack.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self.base: Any = model.base_model
        self.layers = PackedLayers(model)
        self.decoder: Any = self.base.get_decoder()
        self.head = LanguageHead(model, self.decoder, _behind_an_encoder)

    def loss(
        self,
        rows: Sequence[Tensor],
        labels: Sequence[Tensor],
        weights: Sequence[float] | None = None,
        adapter_names: Sequence[str | Sequence[str]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the rows' cross entropies.

        Args:
            rows: Ids that the encoder reads, of each row [T].
            labels: Ids of each row's target [T'], -100 where nothing is learned.
            weights: Of each row's labels in the sum; None: 1.
            adapter_names: As in `PeftModel.forward`.

        Returns:
            The sum, and for each row the sum of its cross entropies [B], without a gradient.
        """
        order, groups = self.model.route(adapter_names, len(rows))
        names = None if adapter_names is None else [adapter_names[i] for i in order]
        each = None if weights is None else [weights[i] for i in order]
        device = self.base.device
        pad = getattr(self.base.config, "pad_token_id", None) or 0
        ids, mask = _padded([rows[i] for i in order], pad, device)
        targets, reads = _padded([_without_end(labels[i]) for i in order], IGNORE, device)
        with self.layers.packing(mask, names, reads), self._without_head() as outputs:
            self.model(
                input_ids=ids,
                attention_mask=mask,
                decoder_input_ids=self._read(targets, pad),
                use_cache=False,
                adapter_names=names,
            )
        found = [(own != IGNORE).nonzero()[:, 0] for own in targets]
        width = targets.shape[1]
        labelled = Labelled(
            [own + row * width for row, own in enumerate(found)],
            [own[places] for own, places in zip(targets, found, strict=True)],
            each,
            device,
        )
        (out,) = outputs
        hidden = out.last_hidden_state.flatten(0, 1).index_select(0, labelled.places)
        total, by_row = self.head.loss(out, hidden, groups, labelled)
        unsorted = torch.empty_like(by_row)
        unsorted[torch.tensor(order, device=device)] = by_row
        return total, unsorted

    def _read(self, targets: Tensor, pad: int) -> Tensor:
        """What the decoder reads [B, T'] to predict `targets`."""
        own = getattr(self.base, "prepare_decoder_input_ids_from_labels", None)
        if own is not None:
            return own(targets)
        read = targets.masked_fill(targets == IGNORE, pad).roll(1, dims=1)
        read[:, 0] = self.base.config.decoder_start_token_id
        return read

    @contextmanager
    def _without_head(self) -> Iterator[list[Any]]:
        """The decoder's outputs of a forward inside the block, whose head sees no token."""
        outputs: list[Any] = []

        def after(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
            outputs.append(out)
            return type(out)(**{**out, "last_hidden_state": out.last_hidden_state[:, :0]})

        handle = self.decoder.register_forward_hook(after)
        try:
            yield outputs
        finally:
            handle.remove()


def _behind_an_encoder(hidden: Tensor) -> dict[str, Any]:
    ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    return {
        "encoder_outputs": BaseModelOutput(last_hidden_state=hidden[None, :1]),  # read by nothing
        "decoder_input_ids": ids,
    }


def _padded(rows: Sequence[Tensor], value: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`rows` padded on the right to [B, T], and the mask of what is theirs."""
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    padded = pad_sequence(list(rows), batch_first=True, padding_value=value)
    return padded.to(device), mask.to(device)


def _without_end(labels: Tensor) -> Tensor:
    """`labels` up to the last one; at least one token, as a decoder reads something."""
    last = (labels != IGNORE).nonzero()
    return labels[: int(last[-1]) + 1 if len(last) else 1]
