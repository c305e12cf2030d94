"""The JSON Schema (2020-12) of a run file, by which editors complete, explain and check one.

It is what pydantic says of `RunConfig`, and of each method the settings that its adapters may have.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from graft.methods import METHODS
from graft.training.adapters import settings_model
from graft.training.config import OF_THE_RUN, RunConfig

__all__ = ["run_file_schema"]

_OF_COMPARISONS = {
    "grid": "For `graft compare`: a list of choices for each key, such as `train.learning_rate`.",
    "compare": "For `graft compare`: seeds, texts and samples.",
}


def run_file_schema() -> dict[str, Any]:
    """The schema, as JSON's kinds of values."""
    schema = RunConfig.model_json_schema()
    parts = schema["$defs"]
    common = parts.pop("AdapterSettings")["properties"]
    methods = [kind.lower() for kind in METHODS]
    for kind in METHODS:
        own = settings_model(kind).model_json_schema()
        parts |= own.pop("$defs", {})
        parts[kind.lower()] = {
            "description": _first_line(METHODS[kind].config_class.__doc__),
            "type": "object",
            "properties": {
                "method": {**common["method"], "const": kind.lower()},
                "learning_rate": common["learning_rate"],
                "data": common["data"] | _only(parts["DataConfig"]["properties"]),
                "train": common["train"] | _only(parts["TrainConfig"]["properties"], OF_THE_RUN),
                **own["properties"],
            },
            "required": ["method", *own.get("required", [])],
            "additionalProperties": False,
        }
    parts["adapter"] = {
        "type": "object",
        "properties": {"method": {**common["method"], "enum": methods}},
        "required": ["method"],
        # Which settings there are depends on the method.
        "allOf": [
            {
                "if": {"properties": {"method": {"const": name}}, "required": ["method"]},
                "then": {"$ref": f"#/$defs/{name}"},
            }
            for name in methods
        ],
    }
    schema["properties"]["adapters"] |= {
        "additionalProperties": {"$ref": "#/$defs/adapter"},
        "minProperties": 1,
    }
    for name, text in _OF_COMPARISONS.items():
        schema["properties"][name] = {"type": "object", "description": text}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "graft run file",
    }


def _only(properties: dict[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    kept = {name: value for name, value in properties.items() if name not in without}
    return {"properties": kept, "additionalProperties": False}


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
