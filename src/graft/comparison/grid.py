"""A run file with `grid:` and `compare:` -> the points to train, checked as far as a file can be.

A point is an adapter with one choice of each setting in the grid that changes what it does. Whether
its data and its targets are there is `study`'s to find out.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from graft.comparison.config import CompareConfig, parse_compare
from graft.comparison.results import FULL, Point
from graft.errors import ConfigError, did_you_mean
from graft.training.config import RunConfig
from graft.training.reading import parse_yaml, read_settings
from graft.training.runfile import parse_run_config

__all__ = ["LIMIT", "Planned", "Study", "load_study", "parse_study"]

LIMIT = 100  # runs that are started without being asked for twice

# What all points share, or what is said elsewhere.
_NOT_IN_A_GRID = {
    "base_model": "all points share one base model; compare another one in a file of its own",
    "revision": "all points share one base model; compare another one in a file of its own",
    "task_type": "all points are for one task",
    "train.bf16": "all points share one base model, which is held in one precision",
    "train.output_dir": "each point has a folder of its own below it",
    "train.overwrite_output_dir": "it is about all points",
    "train.seed": "`compare: {seeds: 3}` trains each point with several seeds",
    "data.eval": "all points are measured on the same rows",
    "data.eval_fraction": "all points are measured on the same rows",
    "data.eval_seed": "all points are measured on the same rows",
}


@dataclass(frozen=True)
class Planned:
    """A point and the run that trains it.

    Attributes:
        point: The point.
        config: Its run, with the first seed; of `full` fine-tuning all but the adapter counts.
        folder: Name of its folder.
    """

    point: Point
    config: RunConfig
    folder: str

    def with_seed(self, seed: int) -> RunConfig:
        """The run with `seed`, in a folder of its own."""
        place = Path(str(self.config.train.output_dir), f"seed-{seed}")
        train = self.config.train.model_copy(update={"seed": seed, "output_dir": str(place)})
        return self.config.model_copy(update={"train": train})


@dataclass(frozen=True)
class Study:
    """A comparison before its first step.

    Attributes:
        run: The run file's run: base model, task, the data that all points are measured on.
        settings: Its `compare:` section.
        grid: Its `grid:` section: values by dotted path.
        points: What is compared, in the order of the file.
    """

    run: RunConfig
    settings: CompareConfig
    grid: dict[str, list[Any]]
    points: tuple[Planned, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of each point."""
        first = self.run.train.seed
        return tuple(range(first, first + self.settings.seeds))

    @property
    def output_dir(self) -> Path:
        """Where the comparison will write."""
        return Path(str(self.run.train.output_dir))

    def dump(self) -> str:
        """The YAML text from which `load_study` makes the same study again."""
        raw = self.run.model_dump(mode="json")
        raw |= {"grid": self.grid} if self.grid else {}
        raw |= {"compare": self.settings.model_dump(mode="json", exclude_unset=True)}
        return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def load_study(path: str | Path, overrides: Sequence[str] = (), limit: int | None = LIMIT) -> Study:
    """Read a run file with `grid:` and `compare:`.

    Args:
        path: The YAML file.
        overrides: `key=value`; also `compare.seeds=3`, `seeds=3` and `grid.KEY=[...]`.
        limit: Most runs, seeds included; None for any number.

    Raises:
        ConfigError: What cannot be read, does not exist or cannot work, or too many runs.
    """
    return parse_study(read_settings(path), overrides, limit)


def parse_study(
    raw: Mapping[Any, Any], overrides: Sequence[str] = (), limit: int | None = LIMIT
) -> Study:
    """The study that the settings `raw` describe; see `load_study`."""
    rest, sections = _apart(raw, overrides)
    settings = parse_compare(sections["compare"])
    grid = _checked_grid(sections["grid"])
    run = _run(raw, rest, {})
    _check_keys(grid, run)
    _check_adapters(run)
    if settings.full and FULL in run.adapters:
        raise ConfigError(
            f"An adapter is called {FULL!r}, which is what `compare.full` is called here; give it "
            "another name."
        )
    if run.data.eval is None and not run.data.eval_fraction:
        raise ConfigError(
            "A comparison needs rows that no point learns from: set `data.eval` to a file, or "
            "`data.eval_fraction` to a share such as 0.1."
        )
    first_seed = run.data.model_copy(update={"eval_seed": run.train.seed})
    if run.data.eval_fraction and run.data.eval_seed is None:
        run = run.model_copy(update={"data": first_seed})
        rest = [*rest, f"data.eval_seed={run.train.seed}"]
    names = [*run.adapters, *([FULL] if settings.full else [])]
    _refuse_many(names, grid, settings.seeds, limit)
    points = [p for name in names for p in _Choices(raw, rest, grid, name, settings).points()]
    return Study(run, settings, grid, tuple(_with_folders(points, run)))


def _apart(raw: Mapping[Any, Any], overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The overrides that are about the run, and the two sections with those that are not."""
    sections: dict[str, Any] = {"compare": raw.get("compare"), "grid": raw.get("grid")}
    rest: list[str] = []
    for override in overrides:
        key, _, text = override.partition("=")
        section, _, name = key.partition(".")
        if key in CompareConfig.model_fields:
            section, name = "compare", key
        if section not in sections:
            rest.append(override)
            continue
        if not name:
            sections[section] = parse_yaml(text, f"The value of `{key}`")
            continue
        given = sections[section]
        if given is not None and not isinstance(given, dict):
            raise ConfigError(f"`{section}` is no section, so it has no `{key}`.")
        value = parse_yaml(text, f"The value of `{key}`")
        sections[section] = {**(given or {}), name: value}
    return rest, sections


def _checked_grid(given: Any) -> dict[str, list[Any]]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ConfigError(
            f"`grid` cannot be {given!r}: expected settings with their values, such as "
            "`grid: {adapters.NAME.r: [4, 8]}`."
        )
    for key, values in given.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"`grid.{key}` cannot be {values!r}: expected a list of values, such as "
                f"[{'1, 2' if values in (None, []) else values}]."
            )
        if len({json.dumps(value, default=str) for value in values}) < len(values):
            raise ConfigError(f"`grid.{key}` names a value twice: {values}.")
    return {str(key): values for key, values in given.items()}


def _check_keys(grid: Mapping[str, Any], run: RunConfig) -> None:
    for key in grid:
        section, _, rest = key.partition(".")
        shared = ".".join(key.split(".")[2:]) if section == "adapters" else key
        reason = _NOT_IN_A_GRID.get(shared) or (section == "compare" and "it is about all points")
        if reason:
            raise ConfigError(f"`grid.{key}` cannot be: {reason}.")
        if section not in ("adapters", "data", "train") or not rest:
            of = next(iter(run.adapters))
            raise ConfigError(
                f"`grid.{key}` needs the whole path of a setting, such as `adapters.{of}.{key}` or "
                f"`train.{key}`."
            )
        name = rest.partition(".")[0]
        if section == "adapters" and name not in run.adapters:
            hint = did_you_mean(name, run.adapters)
            raise ConfigError(f"`grid.{key}`: the run file has no adapter {name!r}.{hint}")


def _check_adapters(run: RunConfig) -> None:
    """Settings of adapters that would make points of what cannot be compared."""
    for name, own in run.adapters.items():
        reads_other_rows = own.data.get("train", run.data.train) != run.data.train
        own_keys = [f"train.{key}" for key in own.train]
        own_keys += [] if reads_other_rows else [f"data.{key}" for key in own.data]
        for key in own_keys:
            if reason := _NOT_IN_A_GRID.get(key):
                raise ConfigError(f"`adapters.{name}.{key}` cannot be in a comparison: {reason}.")


def _refuse_many(
    names: Sequence[str], grid: Mapping[str, list[Any]], seeds: int, limit: int | None
) -> None:
    points = sum(math.prod(len(v) for k, v in grid.items() if _may_touch(k, n)) for n in names)
    if limit is not None and points * seeds > limit:
        each = f", {seeds} seeds each" if seeds > 1 else ""
        raise ConfigError(
            f"That is {points:,} points{each}: {points * seeds:,} runs, more than the {limit} that "
            "are started without asking. Give --yes to start them, or a smaller grid."
        )


def _may_touch(key: str, adapter: str) -> bool:
    section, _, rest = key.partition(".")
    return section != "adapters" or rest.partition(".")[0] == adapter


def _run(raw: Mapping[Any, Any], overrides: Sequence[str], choices: Mapping[str, Any]) -> RunConfig:
    """The run file's run with `choices` made."""
    own = {key: value for key, value in raw.items() if key not in ("grid", "compare")}
    # As text, by the way of the command line: what is wrong is said in the same words.
    chosen = [f"{key}={json.dumps(value, default=str)}" for key, value in choices.items()]
    return parse_run_config(json.loads(json.dumps(own, default=str)), [*overrides, *chosen])


class _Choices:
    """The points of one adapter, or of full fine-tuning."""

    def __init__(
        self,
        raw: Mapping[Any, Any],
        overrides: Sequence[str],
        grid: Mapping[str, list[Any]],
        name: str,
        settings: CompareConfig,
    ) -> None:
        self.raw, self.overrides, self.name, self.settings = raw, overrides, name, settings
        self.full = settings.full and name == FULL
        touching = {key: values for key, values in grid.items() if _may_touch(key, name)}
        self.first = {key: values[0] for key, values in touching.items()}
        # `train.learning_rate` is nothing to an adapter that has its own.
        self.varied = {
            key: values
            for key, values in touching.items()
            if any(self._config({key: v}) != self._config({}) for v in values[1:])
        }

    def points(self) -> list[tuple[Point, RunConfig]]:
        found = []
        for values in itertools.product(*self.varied.values()):
            choices = dict(zip(self.varied, values, strict=True))
            config = self._config(choices)
            method = FULL if self.full else config.adapter.method
            found.append((Point(self._called(choices), self.name, method, choices), config))
        return found

    def _config(self, choices: Mapping[str, Any]) -> RunConfig:
        run = _run(self.raw, self.overrides, {**self.first, **choices})
        if self.full:
            # An adapter is there, as in any run, and counts for nothing.
            name, adapter = next(iter(run.adapters.items()))
            bare = {"learning_rate": None, "data": {}, "train": {}}
            own = run.model_copy(update={"adapters": {name: adapter.model_copy(update=bare)}})
            rate = self.settings.full_learning_rate
        else:
            own = run.alone(self.name)
            rate = own.learning_rate
        train = own.train.model_copy(update={"learning_rate": rate})
        return own.model_copy(update={"train": train})

    def _called(self, choices: Mapping[str, Any]) -> str:
        leaves = [key.rpartition(".")[2] for key in choices]
        labels = [
            leaf if leaves.count(leaf) == 1 else key
            for key, leaf in zip(choices, leaves, strict=True)
        ]
        said = [f"{n}={_shown(v)}" for n, v in zip(labels, choices.values(), strict=True)]
        return " ".join([self.name, *said])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _with_folders(points: Sequence[tuple[Point, RunConfig]], run: RunConfig) -> list[Planned]:
    """Each point with a folder that no other one has."""
    planned: list[Planned] = []
    taken: set[str] = set()
    for point, config in points:
        stem = re.sub(r"[^\w.=-]+", "-", point.name)[:80].strip("-.")
        folder, number = stem, 1
        while folder.casefold() in taken:
            number += 1
            folder = f"{stem}-{number}"
        taken.add(folder.casefold())
        place = str(Path(str(run.train.output_dir), folder))
        train = config.train.model_copy(update={"output_dir": place})
        planned.append(Planned(point, config.model_copy(update={"train": train}), folder))
    return planned
