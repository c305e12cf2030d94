"""The figures of a comparison as columns: what they are called and how they are written.

The table in the terminal and the page show the same columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graft.comparison.results import Comparison, Spread
from graft.download import size_text

__all__ = ["Column", "about", "base_figures", "columns"]

_GIB = 2**30


@dataclass(frozen=True)
class Column:
    """One figure.

    Attributes:
        name: Its name in `Group.figures`.
        heading: Its name for people, with the unit.
        about: What it is, in a sentence.
        text: A value in words.
    """

    name: str
    heading: str
    about: str
    text: Callable[[float], str]

    def mean(self, figures: Mapping[str, Spread]) -> str:
        """The mean; empty where there is none."""
        return self.text(figures[self.name].mean) if self.name in figures else ""

    def range(self, figures: Mapping[str, Spread]) -> str:
        """From the lowest seed to the highest; empty where they agree."""
        found = figures.get(self.name)
        if found is None or self.text(found.low) == self.text(found.high):
            return ""
        return f"{self.text(found.low)} to {self.text(found.high)}"


def columns(found: Comparison) -> tuple[list[Column], list[Column]]:
    """Columns of quality and of cost; what was measured for no point is left out."""
    unit = found.base.inference.unit
    quality = [
        Column(name, name.replace("_", " "), "On held-out rows.", _number)
        for name in found.measures
    ]
    forgotten = "What the loss on the second text rose by, from the base model's."
    quality.append(Column("forgetting", "forgetting", forgotten, _signed))
    cost = [
        Column("trainable_parameters", "trained", "Parameters that were trained.", _count),
        Column("adapter_bytes", "on disk", "What was learned, as a file.", _size),
        Column("peak_bytes", "peak GiB", "Most memory in training.", _gib),
        Column("seconds", "time s", "Of the training steps alone.", _number),
        Column("tokens_per_second", "tokens/s", "In training.", _whole),
        Column("unmerged", f"{unit} unmerged", "Answering, adapter beside the base.", _whole),
        Column("merged", f"{unit} merged", "Answering, adapter in the weights.", _whole),
    ]
    there = {name for group in found.groups for name in group.figures} | set(found.base.quality)
    return [c for c in quality if c.name in there], [c for c in cost if c.name in there]


def base_figures(found: Comparison) -> dict[str, Spread]:
    """What was measured of the base model by itself."""
    base = found.base
    figures: dict[str, float | None] = {
        **base.quality,
        "unmerged": base.inference.unmerged,
        "merged": base.inference.merged,
    }
    return {name: Spread(v, v, v) for name, v in figures.items() if v is not None}


def about(found: Comparison) -> str:
    """What was compared on what, in a line."""
    base, seeds = found.base, len(found.seeds)
    return (
        f"base model {base.name}: {_count(base.parameters)} parameters in {base.dtype} on "
        f"{base.device}; {found.train_rows:,} rows to train on, {found.eval_rows:,} held out; "
        f"{seeds} seed{'' if seeds == 1 else 's'}"
    )


def _count(count: float) -> str:
    """A number of parameters: every digit of it below a million."""
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:,.0f}"


def _number(value: float) -> str:
    return f"{value:#.4g}".rstrip(".")


def _signed(value: float) -> str:
    return f"{value:+#.3g}".rstrip(".")


def _size(count: float) -> str:
    return size_text(round(count))


def _gib(count: float) -> str:
    return f"{count / _GIB:.2f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
