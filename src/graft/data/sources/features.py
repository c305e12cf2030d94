"""Names of classes that a Parquet file carries: `datasets` writes labels and tags as numbers and
puts their names into the schema."""

from __future__ import annotations

import json
from typing import Any

from graft.data.rows import Row

__all__ = ["class_names", "named"]


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column -> the names of its classes, out of a schema's metadata; lists of labels too."""
    described = (metadata or {}).get(b"huggingface")
    try:
        features = dict(json.loads(described)["info"]["features"]) if described else {}
    except (ValueError, KeyError, TypeError):
        return {}  # not of `datasets`' making
    found = {column: _names(feature) for column, feature in features.items()}
    return {column: names for column, names in found.items() if names}


def named(row: Row, names: dict[str, list[str]]) -> Row:
    """`row` with the names of its classes in place of their numbers; -1, no label, is None."""
    return {
        column: _name(value, names[column]) if column in names else value
        for column, value in row.items()
    }


def _names(feature: Any) -> list[str]:
    if isinstance(feature, list):  # how `datasets` once wrote a list of one kind
        return _names(feature[0]) if feature else []
    if not isinstance(feature, dict):
        return []
    if "feature" in feature:
        return _names(feature["feature"])
    return feature["names"] if feature.get("_type") == "ClassLabel" else []


def _name(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_name(item, names) for item in value]
    if value == -1:
        return None
    return names[value] if isinstance(value, int) and value < len(names) else value
