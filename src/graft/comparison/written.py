"""What runs have written, read with whatever is wrong with it: nothing here fails on a file.

`problems` takes a sentence for each thing that is missing or broken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from graft.comparison.results import FULL
from graft.errors import ConfigError
from graft.training.reading import read_settings

__all__ = ["Kind", "is_run", "last_written", "number", "read_contents", "read_log"]

_SETTINGS, _SUMMARY, _LOG = "run.yaml", "summary.json", "train_log.jsonl"
_COMPARISON, _ROW = "results.json", "result.json"

Kind = Literal["run", "joint run", "comparison"]


def is_run(folder: Path) -> bool:
    """Whether `folder` is one a run wrote to."""
    has = {path.name for path in _own_files(folder)}
    return _LOG in has or (_SETTINGS in has and bool(has & {_SUMMARY, _COMPARISON}))


def last_written(folder: Path) -> float:
    """When one of the files was last written, in seconds since 1970."""
    return max(path.stat().st_mtime for path in _own_files(folder))


def number(value: Any) -> float | None:
    """`value` where it is a number; a file may hold anything."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_contents(folder: Path, problems: list[str]) -> tuple[Kind, dict[str, Any], dict[str, Any]]:
    """What kind of run it is, its settings and its summary."""
    if not (folder / _SETTINGS).is_file() and (folder / _ROW).is_file():
        return "run", *_full(_read_json(folder / _ROW, problems), problems)
    settings = _read_yaml(folder / _SETTINGS, problems)
    if (folder / _COMPARISON).is_file():
        found = _read_json(folder / _COMPARISON, problems)
        return "comparison", settings, _comparison(found, problems)
    if not (folder / _SUMMARY).is_file() and (folder / _ROW).is_file():
        row = _read_json(folder / _ROW, problems)  # of a comparison: why it has no summary
        return "run", settings, {"failure": row["error"]} if row.get("error") else {}
    summary = _read_json(folder / _SUMMARY, problems)
    adapters = settings.get("adapters")
    several = "adapters" in summary or (isinstance(adapters, dict) and len(adapters) > 1)
    return "joint run" if several else "run", settings, summary


def read_log(folder: Path, problems: list[str]) -> tuple[dict[str, Any], ...]:
    """The records of the log; lines that are none are left out, and said."""
    path = folder / _LOG
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


def _own_files(folder: Path) -> Iterator[Path]:
    names = (_SETTINGS, _SUMMARY, _LOG, _COMPARISON, _ROW)
    return (folder / name for name in names if (folder / name).is_file())


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
    if not raw:
        return {}
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
            "runs_done": len(rows),
            "runs_planned": whole["planned"],
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
    if len(rows) != (planned := whole["planned"]):
        problems.append(f"stopped or still under way: {len(rows)} of {planned} runs are done")
    return summary


def _full(raw: dict[str, Any], problems: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and summary of full fine-tuning in a comparison, which has no run file."""
    if not raw:
        return {}, {}
    try:
        settings = {**raw["config"], "adapters": {FULL: {"method": FULL}}}
        if (measured := raw["measured"]) is None:
            problems.append(f"failed: {raw['error']}")
            return settings, {}
        names = ("trainable_parameters", "all_parameters", "steps", "tokens", "seconds",
                 "tokens_per_second")  # fmt: skip
        peak = measured["peak_bytes"]
        summary = {
            **{name: measured[name] for name in names},
            "peak_memory_gib": None if peak is None else peak / 2**30,
            "eval_last": measured["quality"],
            "data_sha256": raw["data_sha256"],
        }
    except (KeyError, TypeError):
        problems.append(f"{_ROW} is broken: no row of a comparison in it")
        return {}, {}
    return settings, summary


def _read_yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        problems.append(f"no {path.name}")
        return {}
    try:
        return read_settings(path)
    except ConfigError as error:
        problems.append(str(error).removesuffix("."))
        return {}
