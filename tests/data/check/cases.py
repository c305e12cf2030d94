"""A check in one line, and a finding of it by its name."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.check import Finding, Report, check_data
from graft.data.config import DataConfig

Rows = list[dict[str, Any]]


def check(
    tokenizer: PreTrainedTokenizerBase,
    train: Any,
    task_type: TaskType = TaskType.CAUSAL_LM,
    **settings: Any,
) -> Report:
    names = ("seed", "room", "rows_per_step")
    of_check = {name: settings.pop(name) for name in names if name in settings}
    return check_data(DataConfig(train=train, **settings), tokenizer, task_type, **of_check)


def finding(report: Report, name: str) -> Finding | None:
    found = [finding for finding in report.findings if finding.name == name]
    assert len(found) <= 1
    return found[0] if found else None


def rows_of(found: Finding) -> list[int]:
    return [int(place.rpartition(":")[2]) for place in found.where]
