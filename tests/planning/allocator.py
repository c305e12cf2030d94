"""What torch's allocator really hands out while graft trains: the plan's oracle."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import transformers
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from graft import PeftModel
from graft.config import TaskType
from graft.data.collate import Collator
from graft.planning.setting import Row, Setting
from graft.training.config import TrainConfig
from graft.training.learner import Run
from graft.training.loop import fit

__all__ = ["allocated_peak"]

_CLASSES = {
    TaskType.CAUSAL_LM: transformers.AutoModelForCausalLM,
    TaskType.SEQ_CLS: transformers.AutoModelForSequenceClassification,
    TaskType.SEQ_2_SEQ_LM: transformers.AutoModelForSeq2SeqLM,
}


def allocated_peak(setting: Setting) -> int:
    """Bytes at the highest moment of two steps of `graft.training.fit` on a CPU."""
    config = copy.deepcopy(setting.config)
    base = _CLASSES[setting.task_type].from_config(config, dtype=setting.dtype)
    model = PeftModel(base)
    for name, adapter in setting.adapters.items():
        model.add_adapter(name, adapter)
    if setting.adapters:
        model.set_adapter(next(iter(setting.adapters)))
    else:
        base.requires_grad_(True)
    collate = Collator(SimpleNamespace(pad_token_id=0), setting.task_type)
    runs = {name: _run(setting, name) for name in setting.adapters or [None]}
    there = _bytes([*model.parameters(), *model.buffers()])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        only = next(iter(runs.values()))
        fit(model, runs if len(runs) > 1 else only, collate, task_type=setting.task_type)
    return there + _highest(profiled)


def _run(setting: Setting, name: str | None) -> Run:
    batches = [[row for row in batch if row.adapter in (None, name)] for batch in setting.batches]
    rows = [_row(row, setting) for batch in batches for row in batch]
    settings = TrainConfig(
        per_device_train_batch_size=len(batches[0]),
        gradient_accumulation_steps=len(batches),
        gradient_checkpointing=setting.gradient_checkpointing,
        learning_rate=1e-4,
        max_steps=2,
    )
    return Run(rows, settings=settings)


def _row(row: Row, setting: Setting) -> dict[str, Any]:
    ids = [random.randrange(3, setting.config.vocab_size) for _ in range(row.tokens)]
    made: dict[str, Any] = {"input_ids": ids}
    if setting.task_type is TaskType.SEQ_CLS:
        return {**made, "token_type_ids": [0] * row.tokens, "labels": 1}
    if setting.task_type is TaskType.SEQ_2_SEQ_LM:
        return {**made, "labels": ids[: row.labels]}
    return {**made, "labels": [-100] * (row.tokens - row.labels) + ids[-row.labels :]}


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _highest(profiled: profile) -> int:
    """Of the sum of all that was handed out and given back, in the order of time."""
    events: Any = profiled.profiler.kineto_results.events()  # pyright: ignore
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    now = highest = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        now += change
        highest = max(highest, now)
    return highest
