"""The names that other training tools give to settings, and what they are called here.

A run file has one spelling; these are for error messages and for `conversion`. A file holds the
table of one tool: its name of a setting -> the rule that says it in graft's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from graft.training.config import RunConfig, TrainConfig
from graft.training.dialects.axolotl import AXOLOTL
from graft.training.dialects.llama_factory import LLAMA_FACTORY
from graft.training.dialects.rules import ADAPTER, Here, Rule
from graft.training.dialects.swift import SWIFT
from graft.training.dialects.transformers import COMMON, TRANSFORMERS
from graft.training.dialects.trl import TRL

__all__ = ["ADAPTER", "CONVERTED", "TOOLS", "Here", "explain", "foreign", "shown", "tool_of"]

TOOLS: dict[str, dict[str, Rule]] = {
    "LLaMA-Factory": LLAMA_FACTORY,
    "axolotl": AXOLOTL,
    "ms-swift": SWIFT,
    "TRL": TRL,
    "transformers": TRANSFORMERS,
    "other tools": COMMON,
}

CONVERTED = ("LLaMA-Factory", "axolotl")  # whose files `conversion` reads

# Names that tell nothing of the tool, as graft has them too.
_GRAFTS = {*RunConfig.model_fields, *TrainConfig.model_fields}


def explain(rule: Rule, value: Any) -> Here:
    """What `rule` says of `value`, which may be anything."""
    try:
        return rule(value)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        return Here(lost=f"its value {value!r} is not one that the other tool takes.")


def tool_of(raw: Mapping[Any, Any]) -> str | None:
    """The tool whose settings file `raw` most likely is; None where no name gives it away."""
    own = {
        tool: {name for name in rules if sum(name in other for other in TOOLS.values()) == 1}
        for tool, rules in TOOLS.items()
        if tool not in ("transformers", "other tools")
    }
    found = {tool: len((names & raw.keys()) - _GRAFTS) for tool, names in own.items()}
    best = max(found, key=lambda tool: found[tool])
    return best if found[best] else None


def foreign(path: str, value: Any, adapter: str, likely: str | None) -> str | None:
    """A sentence on the setting `path` of a run file where its name is another tool's; else None.

    Args:
        path: Its dotted path; the last part counts.
        value: What it is set to.
        adapter: Name of the run file's adapter.
        likely: The tool whose meaning comes first where several have the name.
    """
    key = path.rpartition(".")[2]
    tools = [tool for tool, rules in TOOLS.items() if key in rules]
    if not tools:
        return None
    tools.sort(key=lambda tool: tool != likely)  # stable: the others stay in their order
    here = explain(TOOLS[tools[0]][key], value)
    whose = " and ".join(tool + ("'" if tool.endswith("s") else "'s") for tool in tools[:2])
    name = f"`{path}` is {whose} name"
    if here.settings:
        ours = " and ".join(
            f"`{ours.replace(ADAPTER, f'adapters.{adapter}')}: {shown(new)}`"
            for ours, new in here.settings.items()
        )
        return f"{name}; here it is {ours}.{f' Note: {here.lost}' if here.lost else ''}"
    why = (here.lost or here.equal).rstrip(".")
    return f"{name}, and graft has no such setting ({why}): leave it out."


def shown(value: Any) -> str:
    """`value` as YAML on one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False
    )
    return text.removesuffix("...\n").strip()
