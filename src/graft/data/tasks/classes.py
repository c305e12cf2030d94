"""SEQ_CLS: learn the label of a text or of a pair of texts."""

from __future__ import annotations

from itertools import groupby

from graft.data.formats import read_label
from graft.data.rows import Row
from graft.data.tasks.task import Example, Task, array, inputs_of

__all__ = ["Classes"]


class Classes(Task):
    """Learn the label of a text or of a pair of texts."""

    def read(self, row: Row) -> tuple[str, str | None, str]:
        return read_label(row)

    def encode(self, items: list[tuple[str, str | None, str]]) -> list[list[Example | None]]:
        out: list[list[Example | None]] = []
        for paired, run in groupby(items, key=lambda item: item[1] is not None):
            texts, pairs, labels = zip(*run, strict=True)
            inputs = inputs_of(self.tokenizer, list(texts), list(pairs) if paired else None)
            for i, label in enumerate(labels):
                columns = {name: column[i] for name, column in inputs.items()}
                truncated = len(columns["input_ids"]) > self.limit
                if truncated:  # by the tokenizer, which keeps its special tokens
                    pair = [pairs[i]] if paired else None
                    cut = inputs_of(self.tokenizer, [texts[i]], pair, max_length=self.limit)
                    columns = {name: column[0] for name, column in cut.items()}
                arrays = {name: array(values) for name, values in columns.items()}
                out.append([Example({**arrays, "labels": label}, truncated)])
        return out
