"""All that a run needs before its first step: checked, loaded, prepared, attached.

Everything that can be wrong with the input is found here, before the output folder is touched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graft.adapt import PeftModel
from graft.atomic import require_room, write_text
from graft.data.collate import Collator
from graft.data.prepare import PreparedData, prepare_data
from graft.errors import CheckpointError, ConfigError, about
from graft.hub import (
    LABELS_NAME,
    load_config,
    load_model,
    load_tokenizer,
    local_folder,
    resolve,
)
from graft.training.attachment import attach
from graft.training.config import RunConfig
from graft.training.learner import Run
from graft.training.loop import Loop
from graft.training.memory import resident_bytes
from graft.training.positions import room_for_text, within
from graft.training.precision import base_in_bf16
from graft.training.state import Store, adapters_at, checkpoints, failures_at

__all__ = ["Lesson", "Setup", "check_places", "set_up"]

# Settings that change nothing in what is learned, so a resumed run may change them.
_FREE = (
    "output_dir",
    "overwrite_output_dir",
    "per_device_eval_batch_size",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "use_cache",
)


@dataclass(frozen=True)
class Lesson:
    """One adapter of a run, before its first step.

    Attributes:
        config: The run that would train it alone, with what was left open filled in.
        data: Its rows.
    """

    config: RunConfig
    data: PreparedData


@dataclass(frozen=True)
class Setup:
    """A run before its first step.

    Attributes:
        config: The run, with what was left open filled in.
        tokenizer: The base model's.
        lessons: What each adapter learns. The only adapter of a run has the name None here, as
            its files are the run's.
        model: The base model with the adapters.
        store: Where checkpoints will go; nothing is written yet.
        checkpoint: Where the run goes on; None where it starts anew.
        notes: Decisions and facts that people should see.
        resident_bytes: Memory of the process before the base model was loaded.
    """

    config: RunConfig
    tokenizer: PreTrainedTokenizerBase
    lessons: dict[str | None, Lesson]
    model: PeftModel
    store: Store
    checkpoint: Path | None
    notes: list[str]
    resident_bytes: int

    @property
    def output_dir(self) -> Path:
        """Where the run will write."""
        return self.store.output_dir

    def loop(self) -> Loop:
        """The training loop, where the run is.

        Raises:
            ConfigError, CheckpointError: What only shows there.
        """
        runs: dict[Any, Run] = {
            name: Run(lesson.data.train, lesson.data.eval, lesson.config.train)
            for name, lesson in self.lessons.items()
        }
        loop = Loop(
            self.model,
            runs.get(None, runs),  # one adapter, or several by name
            Collator(self.tokenizer, self.config.task_type),
            self.config.task_type,
            self.store,
        )
        if self.checkpoint is not None:
            loop.resume(self.checkpoint)
        return loop


def set_up(
    config: RunConfig,
    resume: bool,
    tell: Callable[[str], None],
    base: PreTrainedModel | None = None,
) -> Setup:
    """Check, load, prepare and attach.

    Args:
        config: The run.
        resume: Go on from the newest checkpoint in `train.output_dir`.
        tell: Hears, in a line, what takes long.
        base: The base model, where it is loaded already; it decides the precision.

    Raises:
        GraftError: Something in the run file, the data or the model cannot be used.
    """
    checkpoint = check_places(config, resume)
    output_dir = Path(str(config.train.output_dir))
    config, why = _resolved(config, base)
    notes = [f"precision: {'bfloat16' if config.train.bf16 else 'float32'} ({why})"]
    tokenizer = load_tokenizer(config.base_model, config.revision)
    lessons: dict[str | None, Lesson] = {}
    for name in config.adapters:
        own = None if len(config.adapters) == 1 else name
        lessons[own] = _lesson(config, name, tokenizer, lessons.values(), tell, notes)
    notes += _on_data(lessons)
    label_names = _same_labels(lessons)
    before = resident_bytes()
    if base is None:
        base = load_model(
            config.base_model,
            config.task_type,
            label_names=label_names,
            dtype=torch.bfloat16 if config.train.bf16 else torch.float32,
            revision=config.revision,
        )
    store = Store(
        output_dir,
        origins={name: _origin(lesson) for name, lesson in lessons.items()},
        save_beside=lambda name, folder: _save_beside(folder, tokenizer, lessons[name].data),
        keep=config.train.save_total_limit,
    )
    model = _attached(base, lessons, store, checkpoint)
    if len(lessons) == 1:
        tokenizer.chat_template = lessons[None].data.chat_template
    return Setup(config, tokenizer, lessons, model, store, checkpoint, notes, before)


def check_places(config: RunConfig, resume: bool) -> Path | None:
    """Look at the folders of a run, which is quick: a download or a plan comes after it.

    Returns:
        The checkpoint that a resumed run goes on from.

    Raises:
        ConfigError: The output folder is taken, or has no checkpoint; or there is no base model.
        CheckpointError: A base model that is broken, or a checkpoint of other adapters.
    """
    output_dir = Path(str(config.train.output_dir))
    checkpoint = _newest(output_dir) if resume else None
    if checkpoint is not None:
        _same_adapters(config, checkpoint)
    require_room(output_dir)
    if checkpoint is None and not config.train.overwrite_output_dir:
        _refuse_used(output_dir)
    if local_folder(config.base_model) is not None:
        resolve(config.base_model)
    return checkpoint


def _resolved(config: RunConfig, base: PreTrainedModel | None) -> tuple[RunConfig, str]:
    if base is not None:
        return config.resolved(base.dtype == torch.bfloat16), "as the base model is loaded"
    bf16, why = base_in_bf16(config.train.bf16, load_config(config.base_model, config.revision))
    return config.resolved(bf16), why


def _lesson(
    whole: RunConfig,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    others: Iterable[Lesson],
    tell: Callable[[str], None],
    notes: list[str],
) -> Lesson:
    """What one adapter of `whole` learns; rows that another one has are the same object."""
    alone = whole.alone(name)
    config = alone.resolved(bool(whole.train.bf16))
    who = None if len(whole.adapters) == 1 else f"adapter {name!r}"
    with about(who):
        room = room_for_text(config, tokenizer)
    cut = config.data.max_length > room
    config = within(config, room)
    for other in others:
        if (config.data, config.train.seed) == (other.config.data, other.config.train.seed):
            return Lesson(config, other.data)
    if cut:
        notes.append(
            f"data.max_length: {room:,} for {name} (the base model has positions for no more)"
        )
    with about(None if alone.data == whole.data else who):  # else it is the run's data
        data = prepare_data(config.data, tokenizer, config.task_type, config.train.seed, tell)
    return Lesson(config, data)


def _same_labels(lessons: Mapping[str | None, Lesson]) -> list[str] | None:
    """The labels of all adapters' data.

    Raises:
        ConfigError: They differ, and with them the size of the head.
    """
    first, *others = lessons
    label_names = lessons[first].data.label_names
    for other in others:
        own = lessons[other].data.label_names
        if own != label_names:
            raise ConfigError(
                f"The data of {first!r} has the labels {_listed(label_names)}, that of {other!r} "
                f"{_listed(own)}: they need heads of different sizes. Give each a run of its own."
            )
    return label_names


def _listed(names: list[str] | None) -> str:
    names = names or []
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _newest(output_dir: Path) -> Path:
    found = checkpoints(output_dir)
    if not found:
        raise ConfigError(
            f"{output_dir} has no checkpoint to resume from; run without --resume "
            "(with train.overwrite_output_dir=true where the folder is not empty)."
        )
    return found[-1]


def _same_adapters(config: RunConfig, checkpoint: Path) -> None:
    now = set(config.adapters) if len(config.adapters) > 1 else set()
    before = adapters_at(checkpoint)
    if before != now:
        was, own = (", ".join(sorted(names)) or "one adapter" for names in (before, now))
        raise CheckpointError(
            f"{checkpoint} is of a run of {was}; this one is of {own}. Resuming goes on with the "
            "same run: put its adapters back, or start a new run in another folder."
        )


def _refuse_used(output_dir: Path) -> None:
    if output_dir.is_file():
        raise ConfigError(f"`train.output_dir` is a file: {output_dir}.")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise ConfigError(
            f"{output_dir} is not empty. Go on with the run in it (--resume), replace that run "
            "(train.overwrite_output_dir=true), or give another train.output_dir."
        )


def _on_data(lessons: Mapping[str | None, Lesson]) -> list[str]:
    """A line on each set of rows, which says of several adapters who learns from it."""
    sets: dict[int, tuple[Lesson, list[str]]] = {}
    for name, lesson in lessons.items():
        sets.setdefault(id(lesson.data), (lesson, []))[1].append(name or "")
    lines = []
    for lesson, names in sets.values():
        data, of = lesson.data, f" of {', '.join(names)}" if any(names) else ""
        text = f"data{of}: {len(data.train):,} rows to train on, format {data.format}"
        if data.rows_truncated:
            limit = lesson.config.data.max_length
            held = ", those to evaluate on among them," if data.eval is not None else ""
            text += f"; {data.rows_truncated:,}{held} were cut to {limit:,} tokens"
        if data.rows_dropped:
            text += f"; {data.rows_dropped:,} were dropped, nothing was left in them to learn"
        lines.append(text)
    return lines


def _attached(
    base: PreTrainedModel,
    lessons: Mapping[str | None, Lesson],
    store: Store,
    checkpoint: Path | None,
) -> PeftModel:
    """The base model with new adapters, or with those of `checkpoint`."""
    model = PeftModel(base)
    gone = {} if checkpoint is None else failures_at(checkpoint)
    for name, lesson in lessons.items():
        known = "default" if name is None else name
        if checkpoint is None or name in gone:
            config, task_type = lesson.config, lesson.config.task_type
            with about(None if name is None else f"adapter {name!r}"):
                attach(model, config.adapter.peft_config(task_type), config.train.seed, known)
        else:
            model.load_adapter(store.folder(name, checkpoint), known, is_trainable=True)
    model.set_adapter("default" if None in lessons else list(model.adapters))
    return model


def _save_beside(folder: Path, tokenizer: PreTrainedTokenizerBase, data: PreparedData) -> None:
    """Write what using the adapter needs and the adapter's own files have no place for."""
    # None where texts were learned as they stand: what lies beside the adapter says how to prompt.
    tokenizer.chat_template = data.chat_template
    tokenizer.save_pretrained(folder)
    if data.label_names is not None:
        text = json.dumps(data.label_names, ensure_ascii=False) + "\n"
        write_text(folder / LABELS_NAME, text)


def _origin(lesson: Lesson) -> dict[str, Any]:
    """What a resumed run must have in common with the one it goes on with, by dotted name."""
    raw = lesson.config.model_dump(mode="json")
    origin = {name: raw[name] for name in ("base_model", "revision", "task_type", "adapters")}
    for section in ("data", "train"):
        for name, value in raw[section].items():
            if name not in _FREE:
                origin[f"{section}.{name}"] = value
    return origin | {f"sha256 of {path}": digest for path, digest in lesson.data.sha256.items()}
