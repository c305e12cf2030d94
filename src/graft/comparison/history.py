"""Past runs under a folder, as their files tell of them.

A run is a folder that `graft train` or `graft compare` wrote to. One whose files are missing or
broken is found all the same and says what is wrong with it. Reading the files is `written`'s, what
differs between two runs `difference`'s, curves are `plots`'. No model is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graft.comparison.written import Kind, is_run, last_written, number, read_contents, read_log
from graft.errors import ConfigError, did_you_mean

__all__ = ["PastRun", "find_runs", "read_run"]

_PART_OF_A_RUN = re.compile(r"checkpoint-\d+|best")


@dataclass(frozen=True)
class PastRun:
    """A run that is over, has stopped, or is still under way.

    Attributes:
        folder: Where its files are.
        kind: One adapter, several trained together, or a comparison.
        settings: What `run.yaml` says.
        summary: What `summary.json` says, or the like of it that a comparison came to; empty
            until the run is over.
        records: The lines of `train_log.jsonl`.
        problems: What is missing or broken, in words.
        date: When something was last written, in local time.
    """

    folder: Path
    kind: Kind
    settings: dict[str, Any]
    summary: dict[str, Any]
    records: tuple[dict[str, Any], ...]
    problems: tuple[str, ...]
    date: datetime

    @property
    def finished(self) -> bool:
        """Whether it is over: done, or given up."""
        return bool(self.summary) and self._number("runs_done") == self._number("runs_planned")

    @property
    def base_model(self) -> str | None:
        """The base model, as it was given."""
        named = self.summary.get("base_model") or self.settings.get("base_model")
        return None if named is None else str(named)

    @property
    def method(self) -> str | None:
        """The method, or the methods of several adapters, each once."""
        adapters = self.settings.get("adapters")
        named = adapters.values() if isinstance(adapters, dict) else ()
        methods = [str(a["method"]) for a in named if isinstance(a, dict) and a.get("method")]
        told = self.summary.get("method")
        return ", ".join(dict.fromkeys(methods)) or (None if told is None else str(told))

    @property
    def steps(self) -> float | None:
        """Optimizer steps done, as far as is known."""
        return self._number("steps") if self.summary else self._last("step")

    @property
    def loss_before(self) -> float | None:
        """The base model's loss on the evaluation rows."""
        first = next((r for r in self.records if "eval_loss" in r), {})
        logged = number(first["eval_loss"]) if first.get("step") == 0 else None
        told = self._number("eval_before", "loss")
        return logged if told is None else told

    @property
    def loss_after(self) -> float | None:
        """The evaluation loss of the adapter that was kept; the last one while a run goes on."""
        kept = "eval_best" if self.summary.get("saved") == "best" else "eval_last"
        return self._number(kept, "loss") if self.summary else self._last("eval_loss")

    @property
    def seconds(self) -> float | None:
        """Time spent on training."""
        return self._number("seconds") if self.summary else self._last("seconds")

    @property
    def peak_memory_gib(self) -> float | None:
        """Most memory in use at once."""
        return self._number("peak_memory_gib") if self.summary else self._last("peak_memory_gib")

    def _number(self, *names: str) -> float | None:
        found: Any = self.summary
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return number(found)

    def _last(self, name: str) -> float | None:
        return next((number(r[name]) for r in reversed(self.records) if name in r), None)


def find_runs(folder: Path) -> tuple[list[PastRun], list[str]]:
    """The runs in `folder` and below it, oldest first, each before those that are part of it.

    Hidden folders are not looked into, nor are checkpoints.

    Returns:
        The runs, and a sentence for each folder that could not be read.

    Raises:
        ConfigError: There is no such folder.
    """
    _require_folder(folder)
    unreadable: list[str] = []
    runs = [read_run(each) for each in _run_folders(folder, unreadable)]
    by_folder = {run.folder: run for run in runs}

    def place(run: PastRun) -> list[tuple[datetime, str]]:
        whole = [by_folder[above] for above in run.folder.parents if above in by_folder]
        return [(each.date, str(each.folder)) for each in (*reversed(whole), run)]

    return sorted(runs, key=place), unreadable


def read_run(folder: Path) -> PastRun:
    """The run in `folder`.

    Raises:
        ConfigError: There is no such folder, or no run in it.
    """
    _require_folder(folder)
    if not is_run(folder):
        raise ConfigError(
            f"{folder} is no run: it holds neither train_log.jsonl nor summary.json or "
            "results.json beside run.yaml."
        )
    problems: list[str] = []
    kind, settings, summary = read_contents(folder, problems)
    records = read_log(folder, problems) if kind == "run" else ()
    if summary.get("failure"):
        problems.append(f"failed: {summary['failure']}")
    return PastRun(
        folder=folder,
        kind=kind,
        settings=settings,
        summary=summary,
        records=records,
        problems=tuple(problems),
        date=datetime.fromtimestamp(last_written(folder), UTC).astimezone(),
    )


def _require_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise ConfigError(f"{folder} is a file; give the folder of a run, or one with runs in it.")
    siblings = [str(p) for p in folder.parent.glob("*") if p.is_dir()]
    raise ConfigError(f"There is no folder {folder}.{did_you_mean(str(folder), siblings)}")


def _run_folders(folder: Path, unreadable: list[str]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        unreadable.append(f"{error.filename} cannot be read: {error.strerror}.")

    seen: set[str] = set()  # links may lead in circles
    for place, inside, _ in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        own = is_run(Path(place))
        inside[:] = sorted(
            name
            for name in inside
            if not name.startswith(".") and not (own and _PART_OF_A_RUN.fullmatch(name))
        )
        if own:
            yield Path(place)
