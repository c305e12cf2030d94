"""What is learned from a row: for each kind of learning, how rows are read and become examples.

`responses` and `texts` are for language models, `targets` for encoder-decoders, `classes`, `tags`
and `questions` for heads. A new kind is one file here and one line in `make_task`. Files,
splitting and counting are left to `encoding` and `prepare`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graft.config import TaskType
from graft.data.config import DataConfig
from graft.data.tasks.classes import Classes
from graft.data.tasks.questions import Answers
from graft.data.tasks.responses import Responses
from graft.data.tasks.tags import Tags
from graft.data.tasks.targets import Targets
from graft.data.tasks.task import Example, Task
from graft.data.tasks.texts import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Example", "Task", "make_task"]

_HEADS: dict[TaskType, type[Task]] = {
    TaskType.SEQ_CLS: Classes,
    TaskType.SEQ_2_SEQ_LM: Targets,
    TaskType.TOKEN_CLS: Tags,
    TaskType.QUESTION_ANS: Answers,
}


def make_task(
    tokenizer: PreTrainedTokenizerBase, config: DataConfig, format_name: str, task_type: TaskType
) -> Task:
    """What to learn from rows of `format_name` for `task_type`.

    Raises:
        DataError: A tokenizer that the task cannot use.
    """
    kind = _HEADS.get(task_type, Texts if format_name == "text" else Responses)
    return kind(tokenizer, config, format_name)
