"""Trainable rows of an embedding: LoRA's `trainable_token_indices`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

from graft.errors import ConfigError
from graft.methods.affine import Affine
from graft.methods.base import Layer, LayerAdapter, new_parameter

__all__ = ["TokenRows"]


class TokenRows(LayerAdapter):
    """Some rows of an embedding, learned whole: `E' = E + S^T (rows - S E)`, S picks the rows.

    At an output head that is tied to the embedding the same rows act as columns.
    """

    def __init__(self, indices: Sequence[int], layer: Layer) -> None:
        super().__init__(None, layer)
        count = layer.in_features
        strange = [index for index in indices if not 0 <= index < count]
        if strange:
            raise ConfigError(
                f"trainable_token_indices: {layer.path} has rows 0 to {count - 1}, not {strange}."
            )
        if len(set(indices)) < len(indices):
            raise ConfigError(f"trainable_token_indices has an index twice: {list(indices)}.")
        self.indices = list(indices)
        self.disk_names = {"trainable_tokens_delta": "token_adapter.trainable_tokens_delta"}
        rows = layer.weight.T[self.indices]
        self.trainable_tokens_delta = new_parameter(layer, rows)  # [n, D], PEFT's name
        self.is_head = False

    def affine(self, layer: Layer) -> Affine:
        own = layer.weight if self.is_head else layer.weight.T  # [V, D]
        rows = self.trainable_tokens_delta
        change = rows - own[self.indices].to(rows.dtype)  # [n, D]
        picked = torch.zeros(len(self.indices), len(own), dtype=rows.dtype, device=rows.device)
        picked[range(len(self.indices)), self.indices] = 1  # [n, V]
        if self.is_head:
            return Affine(A=change, B=picked.T)
        return Affine(A=picked, B=change.T)

    def for_tied(self, layer: Layer) -> Self | None:
        twin = type(self).__new__(type(self))
        nn.Module.__init__(twin)
        twin.indices, twin.is_head, twin.disk_names = self.indices, True, {}
        # The same parameter, registered once: it is one in counts, optimizers and files.
        vars(twin)["trainable_tokens_delta"] = self.trainable_tokens_delta
        return twin
