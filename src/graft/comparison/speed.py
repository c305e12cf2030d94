"""How fast a model answers: with its adapter beside the base model, and merged into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from graft.adapt import PeftModel
from graft.comparison.answers import prompt_and_answer
from graft.comparison.config import CompareConfig
from graft.comparison.results import Inference
from graft.config import TaskType
from graft.data.collate import Collator
from graft.errors import MergeError
from graft.inference import Predictor, Sampling

__all__ = ["Speed"]

_TIMES = 3


class Speed:
    """Measures models on one batch of held-out rows, the same for all.

    Args:
        rows: Held-out rows.
        tokenizer: The base model's.
        task_type: What the models are for.
        settings: How many rows and tokens.
    """

    def __init__(
        self,
        rows: Any,
        tokenizer: PreTrainedTokenizerBase,
        task_type: TaskType,
        settings: CompareConfig,
    ) -> None:
        self.tokenizer, self.task_type, self.settings = tokenizer, task_type, settings
        self.rows: list[Any] = list(islice(cycle(rows), settings.speed_rows))
        self.generates = task_type in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM)
        self.unit = "tokens/s" if self.generates else "rows/s"

    def of(self, model: PeftModel) -> Inference:
        """How fast `model` answers; it is then as it was."""
        model.eval()
        unmerged = self._rate(model)
        if not model.active_adapters:
            return Inference(self.unit, unmerged, unmerged)
        try:
            model.merge_adapter()
        except MergeError:
            note = f"{model.peft_type}: virtual tokens are inputs, not weights: nothing to merge"
            return Inference(self.unit, unmerged, None, note)
        try:
            return Inference(self.unit, unmerged, self._rate(model))
        finally:
            model.unmerge_adapter()

    def _rate(self, model: PeftModel) -> float:
        answer, per_pass = self._generation(model) if self.generates else self._reading(model)
        answer()  # the first time is not like the others
        seconds = []
        for _ in range(_TIMES):
            start = time.perf_counter()
            answer()
            if model.base_model.device.type != "cpu":
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - start)
        return per_pass / median(seconds)

    def _generation(self, model: PeftModel) -> tuple[Callable[[], object], int]:
        """Answers of as many tokens as asked for, whatever they say, and tokens of one pass."""
        pairs = [prompt_and_answer(row, self.task_type) for row in self.rows]
        prompts: Sequence[list[int]] = [
            list(row["input_ids"][:1]) if pair is None else pair[0]
            for row, pair in zip(self.rows, pairs, strict=True)
        ]
        predictor = Predictor(model, self.tokenizer, self.task_type)
        predictor.stop_ids = []
        tokens = self.settings.speed_tokens
        count = len(prompts)
        made = predictor.complete(prompts, Sampling(max_new_tokens=tokens), count)
        per_pass = sum(len(answer.ids) for answer in made)  # fewer where positions end
        return lambda: predictor.complete(prompts, Sampling(max_new_tokens=tokens), count), per_pass

    def _reading(self, model: PeftModel) -> tuple[Callable[[], object], int]:
        """One forward pass of all rows, and their number."""
        batch = Collator(self.tokenizer, self.task_type)(self.rows)
        names = ("input_ids", "attention_mask", "token_type_ids")
        device: Any = model.base_model.device
        inputs = {name: batch[name].to(device) for name in names if name in batch}

        def read() -> object:
            with torch.no_grad():
                return model(**inputs)

        return read, len(self.rows)
