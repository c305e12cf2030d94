"""The rows of a setting as training sees them: ids that mean nothing, labels where they are."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedConfig

from graft.config import TaskType
from graft.data.collate import Collator
from graft.data.template import IGNORED
from graft.planning.setting import Row, Setting
from graft.training.batches import Batch, make_batch
from graft.training.forward import Part

__all__ = ["make_passes"]


def make_passes(setting: Setting, config: PreTrainedConfig) -> list[list[Part]]:
    """The parts of each forward pass of the step.

    Args:
        setting: Says the rows.
        config: Of the base model as it was built.
    """
    own = config.get_text_config()
    pad = SimpleNamespace(pad_token_id=getattr(own, "pad_token_id", None), eos_token_id=None)
    collate = Collator(pad, setting.task_type)  # pyright: ignore[reportArgumentType]
    targets: Counter[str | None] = Counter()
    passes: list[list[tuple[str | None, Batch]]] = []
    for rows in setting.batches:
        by_adapter: dict[str | None, list[Any]] = {}
        for row in rows:
            by_adapter.setdefault(row.adapter, []).append(_row(row, setting.task_type, own))
        batches = {
            name: make_batch(its, collate, setting.task_type) for name, its in by_adapter.items()
        }
        targets.update({name: batch.targets for name, batch in batches.items()})
        passes.append(list(batches.items()))
    return [[Part(batch, 1 / targets[name], name) for name, batch in each] for each in passes]


def _row(row: Row, task_type: TaskType, config: Any) -> dict[str, Any]:
    special = {getattr(config, f"{kind}_token_id", None) for kind in ("pad", "eos", "bos")}
    word = next(token for token in range(config.vocab_size) if token not in special)
    ids = [word] * row.tokens
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < config.vocab_size:
        ids[-1] = end  # which some classifiers look for
    made: dict[str, Any] = {"input_ids": ids}
    if (getattr(config, "type_vocab_size", None) or 0) > 1:
        made["token_type_ids"] = [0] * row.tokens
    if task_type is TaskType.QUESTION_ANS:
        return {**made, "start_positions": 0, "end_positions": 0}
    if task_type is TaskType.SEQ_CLS:
        return {**made, "labels": 0}
    if task_type is TaskType.SEQ_2_SEQ_LM:
        return {**made, "labels": [word] * row.labels}
    label = 0 if task_type is TaskType.TOKEN_CLS else word
    return {**made, "labels": [IGNORED] * (row.tokens - row.labels) + [label] * row.labels}
