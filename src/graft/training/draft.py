"""`graft init`: a model and a data set -> a run file to begin with.

What there is to know of both is `survey`'s to find; here it becomes text. The numbers are where to
start, not the best ones: each has a comment that says what it does.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graft.config import TaskType
from graft.errors import ConfigError, did_you_mean
from graft.inspection import Suggestion
from graft.methods import METHODS, method_names
from graft.training.adapters import kind_of
from graft.training.dialects import shown
from graft.training.survey import Survey, survey

__all__ = ["Draft", "draft"]

_LONGEST = 2048  # tokens; longer rows cost memory that nobody expects
_PLAIN_NAMES = {"train", "data", "dataset", "rows", ""}


@dataclass(frozen=True)
class Draft:
    """A run file, and what it was made from.

    Attributes:
        text: The run file.
        findings: What was found, a sentence each.
    """

    text: str
    findings: list[str]


def draft(model: str, data: str, method: str = "lora", task_type: str | None = None) -> Draft:
    """A run file for `model` and `data`.

    Args:
        model: A folder or hub id; its weights need not be there.
        data: What `data.train` may be, as a text.
        method: As in run files.
        task_type: What the model is for; None goes by the columns and the model's config.

    Raises:
        GraftError: A model or data that cannot be used.
    """
    kind = kind_of(method)
    if kind is None:
        raise ConfigError(f"There is no method {method!r}.{did_you_mean(method, method_names())}")
    found = survey(model, data, task_type)
    chosen = next(s for s in found.inspection.suggestions if s.method == kind.lower())
    if chosen.adapter is None:
        raise ConfigError(f"{chosen.method} does not work on {model}: {chosen.problem}")
    return Draft(_Text(found, chosen).text(), _findings(found))


def _findings(found: Survey) -> list[str]:
    if found.format == "text":
        about = f"{int(found.lengths.sum()):,} tokens of text"
    else:
        middle, high, most = np.percentile(found.lengths, [50, 99, 100]).astype(int)
        beyond = " and more than the model can read" if found.beyond.any() else ""
        about = (
            f"{found.rows:,} rows of {found.format}, half of them up to {middle:,} tokens, "
            f"99 % up to {high:,}, the longest {most:,}{beyond}"
        )
    lines = [
        f"{found.model}: {found.inspection.model_class}, {found.inspection.parameters:,} "
        f"parameters, {found.task_type}",
        f"{found.data}: {about}",
    ]
    if found.task_type is not found.own:
        lines.append(f"{found.task_type} is what the columns are for; --task-type takes another.")
    if found.columns:
        guess = shown(found.columns)
        lines.append(f"The columns are a guess, see that it is right: {guess}")
    return lines


class _Text:
    """The run file, put together."""

    def __init__(self, found: Survey, chosen: Suggestion) -> None:
        self.found, self.chosen = found, chosen
        self.kind = kind_of(chosen.method)
        self.virtual = int(chosen.settings.get("num_virtual_tokens", 0))
        stem = re.sub(r"\W+", "_", Path(found.data.partition("#")[0]).stem).strip("_")
        self.name = "assistant" if stem.lower() in _PLAIN_NAMES else stem
        self.max_length = self._max_length()
        # Text is cut into blocks, and each block is a row.
        tokens = int(found.lengths.sum() * found.rows / len(found.lengths))
        self.rows = found.rows
        if found.format == "text":
            self.rows = max(1, tokens // self.max_length)

    def text(self) -> str:
        """Its lines."""
        found = self.found
        lines = [
            f"# A run for graft: graft train FILE. Made by graft init for {found.data}.",
            *_settings(
                "",
                ("base_model", found.model, f"{found.inspection.parameters:,} parameters"),
                ("task_type", str(found.task_type), "what the model is for"),
            ),
            *("", "adapters:", f"  {self.name}:"),
            *self._adapter(),
            *self._alternatives(),
            *("", "data:"),
            *self._data(),
            *("", "train:"),
            *self._train(),
        ]
        return "\n".join(lines) + "\n"

    def _adapter(self) -> list[str]:
        assert self.chosen.adapter is not None
        assert self.kind is not None
        numbers = self.chosen.adapter.trainable_parameters
        lines = _settings("    ", ("method", self.chosen.method, f"trains {numbers:,} parameters"))
        if self.virtual:
            about = "in front of each row, and of its length"
            lines += _settings("    ", ("num_virtual_tokens", self.virtual, about))
        if self.chosen.method == "lora":
            default = METHODS[self.kind].config_class.defaults()
            lines += _settings(
                "    ",
                ("r", default["r"], "rank of the update: 4 to 64; more learns more"),
                ("lora_alpha", default["lora_alpha"], "the update counts lora_alpha / r"),
                ("# lora_dropout", 0.05, "against learning few rows by heart"),
            )
        names = [hits.pattern for hits in self.chosen.adapter.patterns]
        if names and not any("{" in name for name in names):  # folded paths are no patterns
            lines += _settings("    ", ("# target_modules", names, "taken where this is left out"))
        if self.chosen.method == "lora":
            about = "every linear layer: learns more, costs more"
            lines += _settings("    ", ("# target_modules", "all-linear", about))
        return lines

    def _alternatives(self) -> list[str]:
        lines = ["  # Another method: one of these lines in place of the lines above."]
        for other in self.found.inspection.suggestions:
            kind = kind_of(other.method)
            if other.method == self.chosen.method or kind is None:
                continue
            if other.adapter is None:
                lines.append(f"  # {other.method} does not work here: {other.problem}"[:100])
                continue
            settings = {"method": other.method, **other.settings}
            settings["learning_rate"] = METHODS[kind].learning_rate
            about = f"{other.adapter.trainable_parameters:,} parameters"
            lines += _settings("  ", (f"# {self.name}", settings, about))
        return lines

    def _data(self) -> list[str]:
        found = self.found
        lines = _settings(
            "  ",
            ("train", found.data, "one file, or a list of files and data sets"),
            ("format", found.format, "as the columns say"),
        )
        if found.columns:
            lines += _settings("  ", ("columns", found.columns, "a guess: is it right?"))
        lines += _settings("  ", ("max_length", self.max_length, self._about_length()))
        if found.task_type is TaskType.CAUSAL_LM and found.format != "text":
            lines += _settings("  ", ("train_on", "response", "or all: learn the prompts too"))
        if found.has_validation:
            split = {"path": found.data, "split": "validation"}
            return lines + _settings("  ", ("eval", split, "rows to evaluate on"))
        share = self._share()
        if share:
            about = f"{round(share * self.rows):,} rows set aside to evaluate on"
            return lines + _settings("  ", ("eval_fraction", share, about))
        return lines + _settings("  ", ("# eval_fraction", 0.1, "few rows: none are set aside"))

    def _train(self) -> list[str]:
        assert self.kind is not None
        rows_per_step = 16 if self.rows >= 500 else 8 if self.rows >= 100 else 4
        size = self._batch_size(rows_per_step)
        evaluated = self.found.has_validation or bool(self._share())
        large = self.found.inspection.parameters >= 10**9
        off = "" if large else "# "
        judged = "" if evaluated else "# "
        return _settings(
            "  ",
            ("output_dir", f"runs/{self.name}", "the adapter, its checkpoints, the log"),
            ("learning_rate", METHODS[self.kind].learning_rate, f"{self.chosen.method}'s own"),
            ("lr_scheduler_type", "linear", "falls to 0; or cosine, constant_with_warmup"),
            ("warmup_ratio", 0.03, "share of the steps in which it rises"),
            ("num_train_epochs", self._epochs(rows_per_step), "passes over the rows"),
            ("per_device_train_batch_size", size, "rows at once; halve it if memory runs out"),
            (
                "gradient_accumulation_steps",
                rows_per_step // size,
                f"and double this: {rows_per_step} rows a step",
            ),
            (f"{off}gradient_checkpointing", True, "less memory, a third more time"),
            (f"{judged}load_best_model_at_end", True, "end with the best evaluation's adapter"),
            (f"{judged}early_stopping_patience", 3, "stop after 3 evaluations without gain"),
            ("logging_steps", 10, "steps between two lines of the log"),
            ("seed", 42, "the same seed, the same run"),
            ("# bf16", True, "left out: the hardware decides"),
        )

    def _max_length(self) -> int:
        found = self.found
        room = min(found.positions - self.virtual, _LONGEST)
        if found.format == "text":
            return max(2, min(room, 512))
        wanted = math.ceil(float(np.percentile(found.lengths, 99)) / 64) * 64
        return max(2, min(room, wanted))

    def _about_length(self) -> str:
        if self.found.format == "text":
            return "text is cut into blocks of so many tokens"
        cut = int((self.found.beyond | (self.found.lengths > self.max_length)).sum())
        of = f"of {len(self.found.lengths):,} rows"
        high = int(np.percentile(self.found.lengths, 95))
        return f"95 % have up to {high:,} tokens; {cut:,} {of} are cut"

    def _share(self) -> float:
        if self.rows < 100:
            return 0.0
        return 0.1 if self.rows < 1000 else round(max(0.01, min(0.05, 1000 / self.rows)), 2)

    def _batch_size(self, rows_per_step: int) -> int:
        """A power of two, so that it divides the rows of a step."""
        parameters = self.found.inspection.parameters
        tokens = 8192 if parameters < 10**9 else 4096 if parameters < 4 * 10**9 else 2048
        fits = max(1, tokens // (self.max_length + self.virtual))
        return min(rows_per_step, 2 ** int(math.log2(fits)))

    def _epochs(self, rows_per_step: int) -> int:
        """Enough for some hundred steps; virtual tokens learn slower."""
        wanted, most = (600, 20) if self.virtual else (300, 10)
        each = math.ceil(self.rows * (1 - self._share()) / rows_per_step)
        return max(1, min(most, math.ceil(wanted / each)))


def _settings(indent: str, *settings: tuple[str, Any, str]) -> list[str]:
    """`name: value  # comment`, the comments below one another."""
    return [
        f"{f'{indent}{name}: {shown(value)}':<42}  # {comment}" for name, value, comment in settings
    ]
