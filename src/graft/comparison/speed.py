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
        answer = self._generation(model) if self.generates else self._reading(model)
        made = answer()  # the first time is not like the others
        seconds = []
        for _ in range(_TIMES):
            start = time.perf_counter()
            answer()
            if model.base_model.device.type != "cpu":
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - start)
        return made / median(seconds)

    def _generation(self, model: PeftModel) -> Callable[[], int]:
        """Goes on with every row for as many tokens as asked for, and tells how many it made."""
        pairs = [prompt_and_answer(row, self.task_type) for row in self.rows]
        prompts: Sequence[list[int]] = [
            list(row["input_ids"][:1]) if pair is None else pair[0]
            for row, pair in zip(self.rows, pairs, strict=True)
        ]
        predictor = Predictor(model, self.tokenizer, self.task_type)
        predictor.stop_ids = []  # whatever it says
        sampling = Sampling(max_new_tokens=self.settings.speed_tokens)

        def answer() -> int:
            answers = predictor.complete(prompts, sampling, len(prompts))
            return sum(len(answer.ids) for answer in answers)  # fewer where positions end

        return answer

    def _reading(self, model: PeftModel) -> Callable[[], int]:
        """Reads all rows in one forward pass, and tells how many they are."""
        batch = Collator(self.tokenizer, self.task_type)(self.rows)
        names = ("input_ids", "attention_mask", "token_type_ids")
        device: Any = model.base_model.device
        inputs = {name: batch[name].to(device) for name in names if name in batch}

        def read() -> int:
            with torch.no_grad():
                model(**inputs)
            return len(self.rows)

        return read
