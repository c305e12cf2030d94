"""A comparison as CSV: a line for the base model and one for each point and seed."""

from __future__ import annotations

import csv
import io
from dataclasses import fields
from typing import Any

from graft.comparison.results import Comparison, Measured, Row

__all__ = ["to_csv"]

_PLAIN = [
    field.name
    for field in fields(Measured)
    if field.name not in ("quality", "inference", "samples", "log")
]


def to_csv(found: Comparison) -> str:
    """The text of the file; bytes and seconds as they are, so that nothing is rounded."""
    choices = list(dict.fromkeys(name for group in found.groups for name in group.point.choices))
    lines = [_base(found), *(_line(row, found) for row in found.rows)]
    measured = [*found.measures, *_PLAIN, "inference_unit", "unmerged", "merged"]
    names = ["point", "adapter", "method", *choices, "seed", *measured, "folder", "created_at"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names, "error"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _base(found: Comparison) -> dict[str, Any]:
    base = found.base
    return {
        "point": "base model",
        **base.quality,
        "trainable_parameters": 0,
        "all_parameters": base.parameters,
        "inference_unit": base.inference.unit,
        "unmerged": base.inference.unmerged,
        "merged": base.inference.merged,
        "created_at": found.created_at,
    }


def _line(row: Row, found: Comparison) -> dict[str, Any]:
    point = next(group.point for group in found.groups if group.point.name == row.point)
    line = {
        "point": point.name,
        "adapter": point.adapter,
        "method": point.method,
        **point.choices,
        "seed": row.seed,
        "folder": row.folder,
        "created_at": row.created_at,
        "error": row.error,
    }
    if (measured := row.measured) is None:
        return line
    return {
        **line,
        **measured.quality,
        **{name: getattr(measured, name) for name in _PLAIN},
        "inference_unit": measured.inference.unit,
        "unmerged": measured.inference.unmerged,
        "merged": measured.inference.merged,
    }
