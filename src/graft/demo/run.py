"""Adapt the bundled base model to the demo task with each method, and measure before and after.

One base model is loaded once; each method's adapter is attached, trained, measured and detached
again. Rows take the way of a user's: a file, `graft.data`, the training loop. How each method is
trained is said in `settings`; showing it is left to `graft.cli.demo`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graft.adapt import get_peft_model
from graft.config import TaskType
from graft.data.collate import Collator
from graft.data.config import DataConfig
from graft.data.prepare import prepare_data
from graft.data.template import render_prompt
from graft.demo import demo_model_path, heldout_rows, train_rows
from graft.demo.settings import (
    ROWS_PER_STEP,
    SCHEDULE,
    SEED,
    SETTINGS,
    WARMUP_RATIO,
    MethodSettings,
)
from graft.errors import ConfigError
from graft.hub import load_model, load_tokenizer
from graft.methods import make_config
from graft.training.batches import Rows
from graft.training.config import TrainConfig
from graft.training.learner import Run
from graft.training.loop import fit
from graft.training.report import Callback

__all__ = ["MethodResult", "exact_match", "run_demo", "write_records"]

_TASK = TaskType.CAUSAL_LM
_ROWS_PER_BATCH = 100  # when generating
_LOGGING_STEPS = 50


@dataclass(frozen=True)
class MethodResult:
    """What one method came to.

    Attributes:
        method: Its name in run files.
        trainable_parameters: Parameters of its adapter.
        quality_before: Exact match of the base model alone on the held-out rows, 0 to 1.
        quality_after: The same with the adapter.
        steps: Optimizer steps.
        seconds: Time of the training, without measuring.
        peak_memory_gib: The most memory while training, see `graft.training.memory`.
    """

    method: str
    trainable_parameters: int
    quality_before: float
    quality_after: float
    steps: int
    seconds: float
    peak_memory_gib: float | None


def run_demo(
    settings: Mapping[str, MethodSettings] = SETTINGS,
    *,
    output_dir: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[MethodResult]:
    """Train and measure each method of `settings`, one after the other, on one base model.

    Sets the seed of every random number generator of the process.

    Args:
        settings: By method; the default has all six.
        output_dir: Keeps each adapter as a PEFT folder `METHOD` below; None keeps none.
        callbacks: Who is told.

    Raises:
        ConfigError: An unknown method or field, or an `output_dir` that holds such an adapter.
    """
    configs = {
        method: make_config(method, task_type=_TASK, **chosen.fields)
        for method, chosen in settings.items()
    }
    if output_dir is not None:
        _refuse_used(output_dir, configs)
    base, tokenizer = _load()
    train, heldout = _prepare(tokenizer), heldout_rows()
    written = write_records(base, tokenizer, heldout)
    before = exact_match(written, heldout)
    _note(callbacks, _about_task(heldout[0], written[0]))
    _note(callbacks, f"\nbase model: exact match {before:.1%} of {len(heldout)} held-out rows")

    results = []
    for method, chosen in settings.items():
        _note(callbacks, f"\n{method}")
        set_seed(SEED)  # of the adapter's start
        model = get_peft_model(base, configs[method])
        run = Run(train, settings=_train_config(chosen))
        collate = Collator(tokenizer, _TASK)
        fitted = fit(model, run, collate, task_type=_TASK, callbacks=callbacks)[""]
        after = exact_match(write_records(model, tokenizer, heldout), heldout)
        result = MethodResult(
            method=method,
            trainable_parameters=model.get_nb_trainable_parameters()[0],
            quality_before=before,
            quality_after=after,
            steps=fitted.progress.step,
            seconds=fitted.progress.seconds,
            peak_memory_gib=fitted.peak_memory_gib,
        )
        _note(callbacks, f"exact match {after:.1%} after {result.seconds:.1f} s of training")
        results.append(result)
        if output_dir is not None:
            model.save_pretrained(output_dir / method)
            tokenizer.save_pretrained(output_dir / method)
        model.unload()
    return results


def _refuse_used(output_dir: Path, methods: Iterable[str]) -> None:
    if output_dir.is_file():
        raise ConfigError(f"The output folder {output_dir} is a file.")
    used = [method for method in methods if (output_dir / method).exists()]
    if used:
        raise ConfigError(
            f"{output_dir} holds {' and '.join(used)} already; give another folder, or remove it."
        )


def _load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = str(demo_model_path())
    return load_model(source, _TASK), load_tokenizer(source)


def _note(callbacks: Sequence[Callback], text: str) -> None:
    for callback in callbacks:
        callback.note(text)


def _about_task(row: Mapping[str, str], written: str) -> str:
    return (
        "The task: file an order as a record, in a style that the base model has never seen.\n\n"
        f"{row['prompt']}\n"
        f"  wanted:    {row['completion']}\n"
        f"  base model:{written}"
    )


def write_records(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, str]]
) -> list[str]:
    """What `model` writes after the prompts of `rows`: greedily, the first line of it.

    Only the first line, to the advantage of the base model, which goes on with another note.
    """
    completions = [row["completion"] for row in rows]
    lengths = map(len, tokenizer(completions, add_special_tokens=False)["input_ids"])
    longest = max(lengths) + 1  # with the token that ends it
    lines = []
    for start in range(0, len(rows), _ROWS_PER_BATCH):
        prompts = [
            render_prompt(tokenizer, row["prompt"], None)
            for row in rows[start : start + _ROWS_PER_BATCH]
        ]
        inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        width = inputs["input_ids"].shape[1]
        out = model.generate(**inputs.to(model.device), max_new_tokens=longest)
        texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        lines += [text.partition("\n")[0] for text in texts]
    return lines


def exact_match(lines: Sequence[str], rows: Sequence[Mapping[str, str]]) -> float:
    """Share of `lines` that are the completions of `rows`, letter for letter: 0 to 1."""
    pairs = zip(lines, rows, strict=True)
    return sum(line == row["completion"] for line, row in pairs) / len(rows)


def _prepare(tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The training rows, by the way that a user's file takes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in train_rows()), encoding="utf-8")
        config = DataConfig(train=str(file), use_cache=False)
        prepared: Any = prepare_data(config, tokenizer, _TASK, SEED)
        return prepared.train


def _train_config(chosen: MethodSettings) -> TrainConfig:
    return TrainConfig(
        per_device_train_batch_size=ROWS_PER_STEP,
        max_steps=chosen.steps,
        learning_rate=chosen.learning_rate,
        lr_scheduler_type=SCHEDULE,
        warmup_ratio=WARMUP_RATIO,
        logging_steps=_LOGGING_STEPS,
        seed=SEED,
    )
