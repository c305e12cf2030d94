"""What differs between two runs: settings, data, versions, results.

A setting that one of the files does not name counts as null there, as versions of graft add
settings whose default changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graft.comparison.history import PastRun
from graft.comparison.written import number

__all__ = ["Difference", "difference", "flat_settings"]

Pairs = dict[str, tuple[Any, Any]]

# Of a run, not of what it does; and what of a summary repeats the settings or stands elsewhere.
_OF_THE_FOLDER = {"train.output_dir", "train.overwrite_output_dir"}
_NOT_RESULTS = {"data_sha256", "versions", "seed", "learning_rate"}


@dataclass(frozen=True)
class Difference:
    """Two runs, `a` and `b`, by what they do not share.

    Attributes:
        settings: Dotted keys of `run.yaml` with both values.
        data: Files with both SHA-256; empty where both learned from the same bytes, whatever
            their files are called.
        versions: Packages with both versions.
        results: Numbers of `summary.json` with both values.
        same: Names of the results that agree.
    """

    a: PastRun
    b: PastRun
    settings: Pairs
    data: Pairs
    versions: Pairs
    results: Pairs
    same: tuple[str, ...]


def difference(a: PastRun, b: PastRun) -> Difference:
    """Compare the files of two runs."""
    settings = _differing(flat_settings(a.settings), flat_settings(b.settings))
    data = [_data(run) for run in (a, b)]
    moved = sorted(map(str, data[0].values())) == sorted(map(str, data[1].values()))
    results = [_results(run) for run in (a, b)]
    unequal = _differing(*results)
    return Difference(
        a=a,
        b=b,
        settings=settings,
        data={} if moved else _differing(*data),
        versions=_differing(*(_table(run.summary.get("versions")) for run in (a, b))),
        results=unequal,
        same=tuple(name for name in results[0] if name in results[1] and name not in unequal),
    )


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run by dotted key, without those of its folder.

    Where there is one adapter its name is a setting too, and no part of the keys.
    """
    settings = dict(config)
    adapters = settings.get("adapters")
    if isinstance(adapters, dict) and len(adapters) == 1:
        ((name, adapter),) = adapters.items()
        del settings["adapters"]
        settings["adapter"] = {"name": name, **_table(adapter)}
    return {name: value for name, value in _flat(settings).items() if name not in _OF_THE_FOLDER}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> Pairs:
    names: Iterable[str] = dict.fromkeys([*a, *b])
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}


def _data(run: PastRun) -> dict[Any, Any]:
    """Digests by file; those of all adapters in a run of several."""
    found = _table(run.summary.get("data_sha256"))
    for adapter in _table(run.summary.get("adapters")).values():
        found = found | _table(_table(adapter).get("data_sha256"))
    return found


def _results(run: PastRun) -> dict[str, Any]:
    told = {name: value for name, value in run.summary.items() if name not in _NOT_RESULTS}
    return {name: value for name, value in _flat(told).items() if number(value) is not None}


def _flat(table: Mapping[Any, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def _table(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
