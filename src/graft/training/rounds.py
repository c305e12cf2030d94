"""One optimizer step of every adapter that still learns, in as few forward passes as there may be.

Each pass leaves each adapter its own gradient, and each adapter takes its own step, as it would
alone: weights of the loss, dropout and optimizer are its own, and rows do not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import torch
from torch import nn

from graft.adapt import PeftModel
from graft.errors import ConfigError
from graft.training.batches import Batch, row_lengths
from graft.training.forward import Forward, Padded, Part, propagate
from graft.training.learner import Learner
from graft.training.passes import fill_passes, token_budget

__all__ = ["Rounds"]

Piece = tuple[Learner, Batch]


class Rounds:
    """Takes steps with a model.

    Args:
        model: The base model with the adapters.
        forward: How batches meet it.
        tokens_per_pass: See `TrainConfig`.
    """

    def __init__(self, model: PeftModel, forward: Forward, tokens_per_pass: int | None) -> None:
        self.model, self.forward, self.tokens_per_pass = model, forward, tokens_per_pass
        self.device = next(model.base_model.parameters()).device
        self._shares = True

    def turns(self, learners: Sequence[Learner]) -> str | None:
        """Why adapters must not share a pass of this model, tried on a row of each; None: may."""
        if len(learners) < 2:
            return None
        if too_long := self._too_long(learners):
            self._shares = False
            return too_long
        parts = [self._part(each, each.first_row(), 1.0) for each in learners]
        try:
            with torch.no_grad():
                self.forward.loss(parts)
        except ConfigError as reason:
            self._shares = False
            return str(reason)
        return None

    def _too_long(self, learners: Sequence[Learner]) -> str | None:
        """Why rows side by side are longer than the base model can read, though each alone is not.

        A padded row of a pass has room for the longest prefix, prompt and text of any of them.
        """
        base: Any = self.model.base_model
        positions = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        if not isinstance(self.forward, Padded) or not positions:
            return None
        tables = (m for m in base.modules() if isinstance(m, nn.Embedding))
        for table in tables:
            if table.num_embeddings == positions and table.padding_idx is not None:
                positions -= table.padding_idx + 1  # RoBERTa counts from there
        virtual = sum(max(e.virtual_tokens(kind) for e in learners) for kind in (True, False))
        text, long = max((int(row_lengths(e.run.train_rows).max()), e.name or "") for e in learners)
        if not virtual or virtual + text <= positions:
            return None
        return (
            f"{virtual:,} virtual tokens and a row of {text:,} tokens, as {long} has, are more "
            f"than the {positions:,} positions of the base model"
        )

    def take(self, learners: Sequence[Learner], pool: Executor) -> None:
        """One step of each of `learners`, while `pool` makes the batches of the next one."""
        for pieces in self._passes(learners, pool):
            self._backward(pieces)
        for learner in learners:
            learner.end_step()

    def try_largest(self, learners: Sequence[Learner]) -> None:
        """The largest batch of the first epoch forward and back; nothing learns from it."""
        largest = [(*each.largest_step(), i) for i, each in enumerate(learners) if each.learns]
        if not largest:
            return
        _, step, index = max(largest)
        learner = learners[index]
        batch = max(learner.batches(step), key=lambda batch: self._size([(learner, batch)]))
        try:
            loss, _ = self.forward.loss([self._part(learner, batch, 1 / batch.targets)])
            propagate(loss, self.model, [learner.parameters.values()])
        finally:
            learner.forget_gradients()

    def _part(self, learner: Learner, batch: Batch, weight: float) -> Part:
        return Part(batch.to(self.forward.takes_on), weight, learner.name)

    def _passes(self, learners: Sequence[Learner], pool: Executor) -> list[list[Piece]]:
        """The batches of the learners' next steps, as they share forward passes."""
        pinned = self.forward.takes_on.type == "cuda"
        apart: list[list[Piece]] = []
        due: dict[str | None, list[Piece]] = {}
        for learner in learners:
            pieces = [(learner, batch) for batch in learner.begin_step(pool, pinned)]
            # A mask of dropout over padded rows would depend on the longest row of the pass.
            if self._shares and not (self.forward.pads and learner.drops_out):
                due[learner.name] = pieces
            else:
                apart += [[piece] for piece in pieces]
        if not due:
            return apart
        largest = max(self._size([piece]) for pieces in due.values() for piece in pieces)
        budget = token_budget(self.tokens_per_pass, largest, self.device.type)
        return [*apart, *fill_passes(due, self._size, budget)]

    def _size(self, pieces: Sequence[Piece]) -> int:
        """Tokens that a pass computes."""
        batches = [batch for _, batch in pieces]
        if not self.forward.pads:
            return sum(batch.tokens for batch in batches)
        return max(batch.width for batch in batches) * sum(batch.rows for batch in batches)

    def _backward(self, pieces: Sequence[Piece]) -> None:
        """One pass forward and back; gradients add up in the adapters' parameters."""
        noise: dict[str, int] = {}
        for learner, batch in pieces:
            names = self.model.acting if learner.name is None else (learner.name,)
            noise |= dict.fromkeys(names, learner.noise(batch))
        # What else draws (a router's jitter) draws the same again in a run that was resumed.
        torch.manual_seed(next(iter(noise.values()), 0))
        self.model.router.noise = noise  # until the backward is over, as it may compute again
        try:
            loss, shares = self.forward.loss(
                [self._part(learner, batch, learner.weight) for learner, batch in pieces]
            )
            propagate(loss, self.model, [learner.parameters.values() for learner, _ in pieces])
        finally:
            self.model.router.noise = {}
        for (learner, _), share in zip(pieces, shares, strict=True):
            learner.take(share)
