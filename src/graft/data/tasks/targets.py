"""SEQ_2_SEQ_LM: learn the target of a source."""

from __future__ import annotations

from graft.data.formats import read_pair
from graft.data.rows import Row
from graft.data.tasks.task import Example, Task, array, inputs_of
from graft.data.template import end_of_text

__all__ = ["Targets"]


class Targets(Task):
    """Learn the target of a source."""

    def read(self, row: Row) -> tuple[str, str]:
        return read_pair(row, self.format)

    def encode(self, items: list[tuple[str, str]]) -> list[list[Example | None]]:
        sources = [source for source, _ in items]
        whole = inputs_of(self.tokenizer, sources)["input_ids"]
        cut = inputs_of(self.tokenizer, sources, max_length=self.limit)["input_ids"]
        targets = self.tokenizer(text_target=[target for _, target in items], verbose=False)
        out: list[list[Example | None]] = []
        for before, after, target in zip(whole, cut, targets["input_ids"], strict=True):
            if target[-1:] != [end := end_of_text(self.tokenizer)]:
                target = [*target, end]
            columns = {"input_ids": array(after), "labels": array(target[: self.limit])}
            answer_cut = len(target) > self.limit
            out.append([Example(columns, len(before) > len(after) or answer_cut, answer_cut)])
        return out
