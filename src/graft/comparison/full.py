"""Full fine-tuning, to compare with: every parameter of the base model learns, then is put back.

Nothing of it is written but its log: a copy of the whole model is what adapters are there to avoid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graft.adapt import PeftModel
from graft.training.batches import Collate
from graft.training.config import RunConfig
from graft.training.learner import Run
from graft.training.loop import FitResult, fit
from graft.training.report import Callback, LogFile

__all__ = ["restored", "train_fully"]


@contextmanager
def restored(base: nn.Module) -> Iterator[PeftModel]:
    """`base` with all that is in it trainable, inside the block; then as it was, bit for bit."""
    kept = {name: value.detach().clone() for name, value in base.state_dict().items()}
    model = PeftModel(base)
    base.requires_grad_(True)
    try:
        yield model
    finally:
        base.requires_grad_(False)
        base.zero_grad()
        with torch.no_grad():
            for name, value in base.state_dict().items():
                value.copy_(kept[name])


def train_fully(
    model: PeftModel,
    config: RunConfig,
    data: Any,
    collate: Collate,
    callbacks: Sequence[Callback],
) -> FitResult:
    """Train all of `model`, in place, as `config` trains an adapter.

    Args:
        model: What `restored` gives.
        config: Its run.
        data: Its `PreparedData`.
        collate: Rows -> batch.
        callbacks: Who is told.

    Raises:
        TrainingError: The loss is no number any more.
    """
    run = Run(data.train, data.eval, config.train)
    log = LogFile(Path(str(config.train.output_dir), "train_log.jsonl"), 0)
    told = [log, *callbacks]
    (found,) = fit(model, run, collate, task_type=config.task_type, callbacks=told).values()
    return found
