"""What is wrong with the settings of a run file, each fault in one sentence.

Names first (`unknown_settings`), then values (`value_faults`), so that all that is wrong is said
at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from graft.data.config import DataConfig, SourceConfig
from graft.errors import did_you_mean, nearest
from graft.methods import METHODS
from graft.training.adapters import kind_of, methods_with, settings_model
from graft.training.config import AdapterSettings, RunConfig, TrainConfig
from graft.training.dialects import foreign, tool_of

__all__ = [
    "adapter_settings",
    "setting_paths",
    "unknown_setting",
    "unknown_settings",
    "value_faults",
]

_SECTIONS: dict[str, type[BaseModel]] = {"train": TrainConfig, "data": DataConfig}
_SOURCES = ("train", "eval")  # of `data`, where an entry is a section of its own
_OF_ENTRIES = {  # what axolotl and LLaMA-Factory call the settings of one
    "type": "format",
    "formatting": "format",
    "name": "subset",
    "num_samples": "max_rows",
    **dict.fromkeys(("file_name", "data_files", "hf_hub_url", "ms_hub_url"), "path"),
}
_NO_NAME = (
    "`adapters` gives its adapter no name: write `adapters: {assistant: {method: ...}}`, with the "
    "settings below the name."
)
_OF_COMPARISONS = ("grid", "compare")  # sections that a run file for `graft compare` has
_MISSING = {
    "base_model": "name the frozen model, such as `base_model: hf:ORG/NAME`",
    "task_type": "say what the model is for, such as `task_type: CAUSAL_LM`",
    "adapters": "name one to train, such as `adapters: {assistant: {method: lora}}`",
    "data": "say what to learn from, such as `data: {train: rows.jsonl}`",
    "data.train": "name what to learn from, such as `train: rows.jsonl`",
    "num_virtual_tokens": "say how many, such as `num_virtual_tokens: 20`",
    "train": "say where to write, such as `train: {output_dir: runs/assistant}`",
}


def setting_paths() -> list[str]:
    """Every setting outside of adapters and entries of data, by dotted path."""
    nested = [f"{s}.{name}" for s, model in _SECTIONS.items() for name in model.model_fields]
    return [*RunConfig.model_fields, *nested]


def adapter_settings(adapter: Any) -> list[str]:
    """Names that the settings of one adapter may have."""
    kind = kind_of(adapter.get("method", "")) if isinstance(adapter, dict) else None
    own = [] if kind is None else list(settings_model(kind).model_fields)
    return [*AdapterSettings.model_fields, *own]


def unknown_settings(raw: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """`raw` without the settings that do not exist, and a sentence on each of these."""
    walk = _Walk(raw)
    kept = walk.section(raw, "", RunConfig.model_fields)
    for name, model in _SECTIONS.items():
        if isinstance(kept.get(name), dict):
            kept[name] = walk.section(kept[name], name, model.model_fields)
    data = kept.get("data")
    if isinstance(data, dict):
        data |= {n: walk.sources(data[n], f"data.{n}") for n in _SOURCES if n in data}
    adapters = kept.get("adapters")
    if isinstance(adapters, dict):
        if isinstance(adapters.get("method"), str):
            walk.sentences.append(_NO_NAME)
            adapters = {"assistant": adapters}
        kept["adapters"] = {name: walk.adapter(name, own) for name, own in adapters.items()}
    return kept, walk.sentences


def unknown_setting(raw: Mapping[Any, Any], key: str, value: Any, valid: list[str]) -> str:
    """A sentence on `key`, which the command line gave and which is none of `valid`."""
    return _Walk(raw).unknown(key, value, valid)


class _Walk:
    """Goes through a run file and keeps what exists."""

    def __init__(self, raw: Mapping[Any, Any]) -> None:
        self.sentences: list[str] = []
        adapters = raw.get("adapters")
        names = adapters if isinstance(adapters, dict) and "method" not in adapters else {}
        self.adapter_name = str(next(iter(names), "NAME"))
        self.method: Any = None  # of the adapter that it is in
        self.likely = tool_of(raw)

    def section(self, given: Mapping[Any, Any], path: str, valid: Iterable[str]) -> dict[str, Any]:
        valid = list(valid)
        kept = {}
        for key, value in given.items():
            if key in valid:
                kept[key] = value
            else:
                full = f"{path}.{key}" if path else str(key)
                self.sentences.append(self.unknown(full, value, valid))
        return kept

    def sources(self, given: Any, path: str) -> Any:
        if isinstance(given, dict):
            return self.section(given, path, SourceConfig.model_fields)
        if isinstance(given, list):
            return [self.sources(entry, f"{path}[{i}]") for i, entry in enumerate(given)]
        return given

    def adapter(self, name: Any, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        path, valid, self.method = f"adapters.{name}", adapter_settings(given), given.get("method")
        if kind_of(self.method) is None:  # whose settings it has cannot be told
            valid += [field for kind in METHODS for field in settings_model(kind).model_fields]
        kept = self.section(given, path, valid)
        for name, model in _SECTIONS.items():
            if isinstance(kept.get(name), dict):
                kept[name] = self.section(kept[name], f"{path}.{name}", model.model_fields)
        return kept

    def unknown(self, path: str, value: Any, valid: list[str]) -> str:
        """A sentence on the setting `path`, which is none of its siblings `valid`."""
        section, _, leaf = path.rpartition(".")
        if path in _OF_COMPARISONS:
            return f"`{path}` is a section for `graft compare`; this command takes one run."
        owners = methods_with(leaf)
        if section.startswith("adapters.") and owners:
            return f"`{path}` is a setting of {', '.join(owners)}, not of {self.method}."
        if valid == list(SourceConfig.model_fields) and leaf in _OF_ENTRIES:
            return f"`{path}` is other tools' name; here it is `{section}.{_OF_ENTRIES[leaf]}`."
        place = self._belongs(path, leaf, owners)
        if place:
            return f"`{path}` is in the wrong place; it belongs {place}."
        sentence = foreign(path, value, self.adapter_name, self.likely)
        if sentence is not None:
            return sentence
        if nearest(leaf, valid):
            return f"There is no setting `{path}`.{did_you_mean(leaf, valid)}"
        elsewhere = {known.rpartition(".")[2]: known for known in setting_paths()}
        close = [elsewhere[name] for name in nearest(leaf, elsewhere)]
        hint = f" Did you mean {' or '.join(close)}?" if close else did_you_mean(leaf, valid)
        return f"There is no setting `{path}`.{hint}"

    def _belongs(self, path: str, leaf: str, owners: list[str]) -> str:
        for known in setting_paths():
            if known.rpartition(".")[2] == leaf and known != path:
                return f"at `{known}`"
        if leaf in SourceConfig.model_fields:
            return f"in an entry of `data.train`, such as `{{path: ..., {leaf}: ...}}`"
        if owners or leaf in AdapterSettings.model_fields:
            return f"at `adapters.{self.adapter_name}.{leaf}`"
        return ""


def value_faults(error: ValidationError, raw: Any, start: str = "") -> dict[str, str]:
    """A sentence on each value that `error` is about, by its path.

    Args:
        error: What pydantic found wrong with `raw`.
        raw: The settings.
        start: Path of these settings in the run file.
    """
    wanted: dict[str, list[str]] = {}
    sentences: dict[str, str] = {}
    for problem in error.errors():
        path = _path(problem["loc"], raw, start)
        if problem["type"] == "extra_forbidden":
            continue  # named already
        expected = _EXPECTED.get(problem["type"])
        if expected is None:
            sentences.setdefault(path, _sentence(path, dict(problem)))
            continue
        # Of a value that may be of several kinds pydantic tells each one that it is not.
        words = wanted.setdefault(path, [])
        words += [expected] if expected not in words else []
        sentences[path] = _mistyped(path, problem["input"], words)
    return sentences


# What pydantic calls a value of the wrong kind -> the right one.
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_KINDS = {
    "data.train": "a path, a mapping with `path`, or a list of these",
    "data.eval": "a path, a mapping with `path`, or a list of these",
    "adapters": "a mapping such as `assistant: {method: lora}`",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "{} or more"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "{} or less"),
    "less_than": ("lt", "less than {}"),
}


def _path(location: tuple[str | int, ...], raw: Any, start: str) -> str:
    """The dotted path of `location`, whose parts may also be pydantic's names of kinds."""
    path, here = start, raw
    for place, part in enumerate(location):
        last = place == len(location) - 1
        if isinstance(part, int) and isinstance(here, list):
            path, here = f"{path}[{part}]", here[part] if part < len(here) else None
        elif isinstance(here, dict) and (part in here or (last and part in _KNOWN)):
            path, here = f"{path}.{part}" if path else str(part), here.get(part)
    return path


def _leaves() -> set[str]:
    names = {path.rpartition(".")[2] for path in setting_paths()}
    names |= {*SourceConfig.model_fields, *AdapterSettings.model_fields}
    return names | {name for kind in METHODS for name in settings_model(kind).model_fields}


_KNOWN = _leaves()


def _given(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _mistyped(path: str, value: Any, words: list[str]) -> str:
    expected = _KINDS.get(path.partition("[")[0]) or " or ".join(words)
    sentence = f"`{path}` cannot be {_given(value)}: expected {expected}"
    if isinstance(value, str) and {"a number", "a whole number"} & set(words):
        number = re.fullmatch(r"\s*([-+]?\d+\.?\d*([eE][-+]?\d+)?)\s*", value)
        return f"{sentence}; write {number[1]}, without quotes." if number else f"{sentence}."
    if isinstance(value, str) and words == ["a list"]:
        return f"{sentence}; write [{value}]."
    return f"{sentence}."


def _sentence(path: str, problem: dict[str, Any]) -> str:
    """What pydantic found wrong at `path`, in words."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "missing":
        hint = _MISSING.get(path) or _MISSING.get(path.rpartition(".")[2])
        return f"`{path}` is missing{f': {hint}' if hint else ''}."
    if kind == "value_error":
        message = str(context["error"])
        about = f"`{path}`: " if path else ""
        return f"{about}{message}{'' if message.endswith(('.', '?')) else '.'}"
    given = _given(problem["input"])
    if kind in ("enum", "literal_error"):
        valid = re.findall(r"'([^']*)'", context["expected"])
        return f"`{path}` cannot be {given}.{did_you_mean(str(problem['input']), valid)}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"`{path}` cannot be {given}: expected {words.format(_plain(context[name]))}."
    if kind == "finite_number":
        return f"`{path}` cannot be {given}: expected a number that is finite."
    if kind == "string_too_short":
        return f"`{path}` is empty."
    message = problem["msg"]
    return f"`{path}` cannot be {given}: {message[0].lower()}{message[1:]}."


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) and bound < 1e9 else str(bound)
