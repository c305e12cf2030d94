"""A run file and what the command line changes in it -> `RunConfig`, or sentences that help.

The YAML is `reading`'s, the wording of what is wrong in it `faults`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from graft.atomic import require_place, write_text
from graft.data.config import DataConfig
from graft.errors import ConfigError, did_you_mean
from graft.training.adapters import kind_of, settings_model
from graft.training.config import AdapterSettings, RunConfig, TrainConfig
from graft.training.dialects import CONVERTED, tool_of
from graft.training.faults import (
    adapter_settings,
    setting_paths,
    unknown_setting,
    unknown_settings,
    value_faults,
)
from graft.training.reading import parse_yaml, read_settings

__all__ = [
    "dump_run_config",
    "load_run_config",
    "parse_run_config",
    "refuse_written",
    "split_overrides",
    "write_run_file",
]


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file.

    Args:
        path: The YAML file. Paths inside it are relative to the current directory.
        overrides: `key=value`, in the order of the command line. A key is a dotted path
            (`train.learning_rate`) or a last name that is found once (`learning_rate`).

    Raises:
        ConfigError: No such file, broken YAML, an unknown key, a value that cannot work.
    """
    raw = read_settings(path)
    tool = tool_of(raw)
    if tool in CONVERTED and not raw.keys() & {"adapters", "data", "train"}:
        raise ConfigError(
            f"{path} is a file of {tool}, not a run file; `graft convert {path}` makes one of it."
        )
    return parse_run_config(raw, overrides)


def parse_run_config(raw: dict[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """The run that the settings `raw` describe.

    Args:
        raw: What a run file holds; `overrides` change it.
        overrides: As in `load_run_config`.

    Raises:
        ConfigError: With a sentence for each setting that is unknown, missing or unusable.
    """
    for override in overrides:
        _apply(raw, override)
    known, sentences = unknown_settings(raw)
    faults = _adapter_faults(known)
    config = None
    try:
        config = RunConfig.model_validate(known)
    except ValidationError as error:
        told = {path.rpartition(".")[0] for path in faults}
        found = value_faults(error, known)
        faults |= {path: text for path, text in found.items() if path not in told}
    if config is None or sentences or faults:
        raise ConfigError("\n".join([*sentences, *faults.values()]))
    return config


def _adapter_faults(known: dict[str, Any]) -> dict[str, str]:
    """Values of the wrong kind in the settings of adapters, by path.

    Such an adapter is left with its method alone: its config would stumble over the values.
    """
    faults: dict[str, str] = {}
    adapters = known.get("adapters")
    for name, settings in list(adapters.items()) if isinstance(adapters, dict) else ():
        kind = kind_of(settings.get("method")) if isinstance(settings, dict) else None
        if kind is None:
            continue
        common = AdapterSettings.model_fields
        parts = {
            "": (settings_model(kind), {k: v for k, v in settings.items() if k not in common}),
            ".train": (TrainConfig, settings.get("train")),
            ".data": (DataConfig, settings.get("data")),
        }
        for part, (model, own) in parts.items():
            if not isinstance(own, dict):
                continue
            try:
                # What is learned from may be the run's: any path will do here.
                model.model_validate({"train": "-", **own} if model is DataConfig else own)
            except ValidationError as error:
                faults |= value_faults(error, own, f"adapters.{name}{part}")
                known["adapters"][name] = {"method": settings["method"]}
    return faults


def dump_run_config(config: RunConfig) -> str:
    """The YAML text from which `load_run_config` makes `config` again."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def refuse_written(path: Path, force: bool) -> None:
    """Raise a ConfigError where there is a file already, unless `force` says to replace it."""
    require_place(path)
    if path.exists() and not force:
        raise ConfigError(
            f"{path} exists; give another name by --output, or replace it by --force."
        )


def write_run_file(path: Path, text: str, force: bool) -> None:
    """Write a run file that graft made, whole or not at all.

    Raises:
        ConfigError: As `refuse_written` does.
    """
    refuse_written(path, force)
    write_text(path, text)


def split_overrides(arguments: Iterable[str]) -> list[str]:
    """`--key value`, `--key=value`, `--flag` and `key=value` as `key=value`.

    Raises:
        ConfigError: A word that is neither.
    """
    out: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if "=" not in word:
                raise ConfigError(f"{word!r} is no setting; write key=value or --key value.")
            out.append(word)
        elif "=" in word:
            key, _, value = word[2:].partition("=")
            out.append(f"{key.replace('-', '_')}={value}")
        else:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
            out.append(f"{word[2:].replace('-', '_')}={value}")
    return out


def _apply(raw: dict[str, Any], override: str) -> None:
    """Change `raw` as the `key=value` in `override` says."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no setting; write key=value.")
    value = parse_yaml(text, f"The value of `{key}`")
    *sections, leaf = _full_path(raw, key, value).split(".")
    here = raw
    for depth, section in enumerate(sections):
        here = here.setdefault(section, {})
        if not isinstance(here, dict):
            raise ConfigError(
                f"`{'.'.join(sections[: depth + 1])}` is no section, so it has no `{key}`."
            )
    here[leaf] = value


def _full_path(raw: dict[str, Any], key: str, value: Any) -> str:
    """The dotted path of `key`, which may be the last name only."""
    adapters = raw.get("adapters")
    adapters = adapters if isinstance(adapters, dict) else {}
    if "." in key:
        section, name, *_ = key.split(".")
        if section == "adapters" and adapters and name not in adapters:
            hint = did_you_mean(name, adapters)
            raise ConfigError(f"`{key}`: the run file has no adapter {name!r}.{hint}")
        return key
    paths = [path for path in setting_paths() if path.rpartition(".")[2] == key]
    if not paths:  # a setting of the run comes before one of an adapter
        paths = [f"adapters.{n}.{key}" for n, a in adapters.items() if key in adapter_settings(a)]
    if len(paths) > 1:
        raise ConfigError(f"`{key}` could be {' or '.join(paths)}; give the whole path.")
    if not paths:
        fields = [name for adapter in adapters.values() for name in adapter_settings(adapter)]
        leaves = [path.rpartition(".")[2] for path in setting_paths()]
        raise ConfigError(unknown_setting(raw, key, value, [*leaves, *fields]))
    return paths[0]
