"""A run file and what the command line changes in it -> `RunConfig`, or one sentence that helps.

Reads YAML 1.2's numbers (`1e-4` is a float), refuses a key given twice, and knows where a setting
belongs when it stands in the wrong place.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from graft.config import PeftType
from graft.data.config import DataConfig
from graft.errors import ConfigError, did_you_mean
from graft.methods import METHODS
from graft.training.config import AdapterSettings, RunConfig, TrainConfig
from graft.training.dialects import foreign_name

__all__ = ["dump_run_config", "load_run_config", "parse_run_config", "split_overrides"]

_SECTIONS: dict[str, type[BaseModel]] = {"train": TrainConfig, "data": DataConfig}


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file.

    Args:
        path: The YAML file. Paths inside it are relative to the current directory.
        overrides: `key=value`, in the order of the command line. A key is a dotted path
            (`train.learning_rate`) or a last name that is found once (`learning_rate`).

    Raises:
        ConfigError: No such file, broken YAML, an unknown key, a value that cannot work.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [str(p) for p in Path(path).parent.glob("*.y*ml")]
        hint = did_you_mean(str(path), siblings)
        raise ConfigError(f"There is no run file {path}.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The run file {path} cannot be read: {error}.") from None
    raw = _parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no settings; a run file starts with `base_model: ...`.")
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
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        sentences: dict[str, str] = {}
        for problem in error.errors():
            path = _dotted(problem["loc"])
            sentences.setdefault(path, _sentence(path, dict(problem)))
        raise ConfigError("\n".join(sentences.values())) from None


def dump_run_config(config: RunConfig) -> str:
    """The YAML text from which `load_run_config` makes `config` again."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-4` is a number, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.MarkedYAMLError(problem=f"`{key}` is given twice (line {line})")
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{where} is not valid YAML{place}: {error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is not valid YAML: {error}.") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    """Change `raw` as the `key=value` in `override` says."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no setting; write key=value.")
    *sections, leaf = _full_path(raw, key).split(".")
    here = raw
    for depth, section in enumerate(sections):
        here = here.setdefault(section, {})
        if not isinstance(here, dict):
            raise ConfigError(
                f"`{'.'.join(sections[: depth + 1])}` is no section, so it has no `{key}`."
            )
    here[leaf] = _parse_yaml(text, f"The value of `{key}`")


def _full_path(raw: dict[str, Any], key: str) -> str:
    """The dotted path of `key`, which may be the last name only."""
    adapters = raw.get("adapters")
    adapters = adapters if isinstance(adapters, dict) else {}
    if "." in key:
        section, name, *_ = key.split(".")
        if section == "adapters" and adapters and name not in adapters:
            hint = did_you_mean(name, adapters)
            raise ConfigError(f"`{key}`: the run file has no adapter {name!r}.{hint}")
        return key
    paths = [path for path in _setting_paths() if path.rpartition(".")[2] == key]
    if not paths:  # a setting of the run comes before one of an adapter
        paths = [f"adapters.{n}.{key}" for n, a in adapters.items() if key in _adapter_fields(a)]
    if len(paths) > 1:
        raise ConfigError(f"`{key}` could be {' or '.join(paths)}; give the whole path.")
    if not paths:
        fields = [name for adapter in adapters.values() for name in _adapter_fields(adapter)]
        leaves = [path.rpartition(".")[2] for path in _setting_paths()]
        raise ConfigError(_unknown(key, [*leaves, *fields]))
    return paths[0]


def _setting_paths() -> list[str]:
    nested = [f"{s}.{name}" for s, model in _SECTIONS.items() for name in model.model_fields]
    return [*RunConfig.model_fields, *nested]


def _adapter_fields(adapter: Any) -> list[str]:
    """Names that the settings of one adapter may have."""
    method = str(adapter.get("method", "")) if isinstance(adapter, dict) else ""
    kind = method.upper().replace("-", "_")
    known = METHODS[PeftType(kind)].config_class if kind in PeftType.__members__ else None
    own = [] if known is None else [field.name for field in dataclasses.fields(known)]
    return [*AdapterSettings.model_fields, *own]


def _unknown(path: str, valid: Iterable[str]) -> str:
    """A sentence on the unknown setting `path`, whose siblings are `valid`."""
    foreign = foreign_name(path)
    if foreign is not None:
        return foreign
    leaf = path.rpartition(".")[2]
    elsewhere = [known for known in _setting_paths() if known.rpartition(".")[2] == leaf]
    if elsewhere and path not in elsewhere:
        return f"`{path}` is in the wrong place; it belongs at `{elsewhere[0]}`."
    return f"There is no setting `{path}`.{did_you_mean(leaf, valid)}"


def _dotted(location: tuple[str | int, ...]) -> str:
    parts = [str(part) for part in location]
    # In a section, what follows the setting names the members of a union.
    return ".".join(parts[:2] if parts[0] in _SECTIONS else parts)


def _sentence(path: str, problem: dict[str, Any]) -> str:
    """What pydantic found wrong at `path`, in words."""
    kind, section = problem["type"], path.partition(".")[0]
    if kind == "extra_forbidden":
        model = _SECTIONS[section] if "." in path else RunConfig
        return _unknown(path, model.model_fields)
    if kind == "missing":
        return f"`{path}` is missing from the run file."
    if kind == "value_error":
        message = str(problem["ctx"]["error"])
        return f"`{path}`: {message}{'' if message.endswith(('.', '?')) else '.'}"
    given = "nothing" if problem["input"] is None else repr(problem["input"])
    if kind in ("enum", "literal_error"):
        valid = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"`{path}` cannot be {given}.{did_you_mean(str(problem['input']), valid)}"
    message = problem["msg"]
    return f"`{path}` cannot be {given}: {message[0].lower()}{message[1:]}."
