"""Past runs under a folder, as their files tell of them.

Reads what `graft train` and `graft compare` leave behind: `run.yaml`, `summary.json`,
`train_log.jsonl`, `results.json`. A run whose files are missing or broken is found all the same
and says what is wrong with it. No model is loaded. What differs between two runs is left to
`difference`, curves to `plots`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from graft.errors import ConfigError, did_you_mean
from graft.training.reading import read_settings

__all__ = ["PastRun", "find_runs", "is_run", "number", "read_run"]

_SETTINGS, _SUMMARY, _LOG, _COMPARISON = (
    "run.yaml",
    "summary.json",
    "train_log.jsonl",
    "results.json",
)
_PART_OF_A_RUN = re.compile(r"checkpoint-\d+|best")

Kind = Literal["run", "joint run", "comparison"]


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
        return ", ".join(dict.fromkeys(methods)) or self.summary.get("method")

    @property
    def steps(self) -> float | None:
        """Optimizer steps done, as far as is known."""
        return self._number("steps") if self.summary else self._last("step")

    @property
    def loss_before(self) -> float | None:
        """The base model's loss on the evaluation rows."""
        if self.summary:
            return self._number("eval_before", "loss")
        first = next((r for r in self.records if "eval_loss" in r), {})
        return number(first["eval_loss"]) if first.get("step") == 0 else None

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


def number(value: Any) -> float | None:
    """`value` where it is a number; a file may hold anything."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


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


def is_run(folder: Path) -> bool:
    """Whether `folder` is one a run wrote to."""
    has = {path.name for path in _own_files(folder)}
    return _LOG in has or (_SETTINGS in has and bool(has & {_SUMMARY, _COMPARISON}))


def read_run(folder: Path) -> PastRun:
    """The run in `folder`.

    Raises:
        ConfigError: There is no such folder, or no run in it.
    """
    _require_folder(folder)
    if not is_run(folder):
        raise ConfigError(
            f"{folder} is no run: it holds neither {_LOG} nor {_SUMMARY} or {_COMPARISON} beside "
            f"{_SETTINGS}."
        )
    problems: list[str] = []
    compared = (folder / _COMPARISON).is_file()
    summary = _read_json(folder / (_COMPARISON if compared else _SUMMARY), problems)
    if compared and summary:
        summary = _comparison(summary, problems)
    settings = _read_yaml(folder / _SETTINGS, problems)
    several = "adapters" in summary or len(settings.get("adapters") or ()) > 1
    records = () if compared or several else _read_log(folder / _LOG, problems)
    if summary.get("failure"):
        problems.append(f"failed: {summary['failure']}")
    written = max(p.stat().st_mtime for p in _own_files(folder))
    return PastRun(
        folder=folder,
        kind="comparison" if compared else "joint run" if several else "run",
        settings=settings,
        summary=summary,
        records=records,
        problems=tuple(problems),
        date=datetime.fromtimestamp(written, UTC).astimezone(),
    )


def _own_files(folder: Path) -> Iterator[Path]:
    names = (_SETTINGS, _SUMMARY, _LOG, _COMPARISON)
    return (folder / name for name in names if (folder / name).is_file())


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


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"stopped or still under way: no {path.name} yet")
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
    except (ValueError, RecursionError):
        problems.append(f"{path.name} is broken: not JSON")
    else:
        if isinstance(found, dict):
            return found
        problems.append(f"{path.name} is broken: no object in it")
    return {}


def _comparison(raw: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """What `results.json` comes to, by the names of a `summary.json`."""
    try:
        whole, rows = raw["graft"], [record["graft"] for record in raw["results"]]
        measured = [row["measured"] for row in rows if row["measured"] is not None]
        peaks = [m["peak_bytes"] for m in measured if m["peak_bytes"] is not None]
        summary = {
            "base_model": whole["base"]["name"],
            "seconds": sum(m["total_seconds"] for m in measured),
            "peak_memory_gib": max(peaks) / 2**30 if peaks else None,
            "data_sha256": whole["data_sha256"],
            "versions": whole["versions"],
            "points": {
                group["point"]["name"]: {n: f["mean"] for n, f in group["figures"].items()}
                for group in whole["groups"]
            },
        }
    except (KeyError, TypeError, AttributeError):
        problems.append(f"{_COMPARISON} is broken: no comparison in it")
        return {}
    if failed := len(rows) - len(measured):
        problems.append(f"{failed} of {len(rows)} runs failed")
    planned = number(whole.get("planned"))
    if planned is not None and len(rows) < planned:
        problems.append(f"stopped or still under way: {len(rows)} of {planned} runs are done")
    return summary


def _read_yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        problems.append(f"no {path.name}")
        return {}
    try:
        return read_settings(path)
    except ConfigError as error:
        problems.append(str(error).removesuffix("."))
        return {}


def _read_log(path: Path, problems: list[str]) -> tuple[dict[str, Any], ...]:
    records: list[dict[str, Any]] = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        problems.append(f"no {path.name}")
        return ()
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return ()
    broken: list[int] = []
    for place, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            broken.append(place)
    if broken:
        more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        problems.append(f"{path.name} is broken at line {broken[0]}{more}")
    return tuple(records)
