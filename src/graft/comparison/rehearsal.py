"""All of a comparison but its steps: the base model loaded, data read, adapters attached once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from graft.comparison.grid import Planned, Study
from graft.comparison.results import FULL
from graft.comparison.yardstick import Yardstick
from graft.data.prepare import PreparedData, prepare_data
from graft.errors import ConfigError, about
from graft.hub import load_tokenizer
from graft.training.config import RunConfig
from graft.training.positions import room_for_text, within
from graft.training.setup import set_up

__all__ = ["Ready", "Rehearsed", "rehearse"]


@dataclass(frozen=True)
class Ready:
    """A point that can be trained.

    Attributes:
        planned: The point.
        config: Its run, with what was left open filled in.
        data_sha256: Digest of each file of its data.
        data: Its rows, of full fine-tuning; a run of an adapter reads them itself.
    """

    planned: Planned
    config: RunConfig
    data_sha256: dict[str, str]
    data: PreparedData | None

    def with_seed(self, seed: int) -> RunConfig:
        """Its run with `seed`."""
        folder = self.planned.with_seed(seed).train.output_dir
        train = self.config.train.model_copy(update={"seed": seed, "output_dir": folder})
        return self.config.model_copy(update={"train": train})


@dataclass(frozen=True)
class Rehearsed:
    """A comparison before its first step.

    Attributes:
        base: The base model, bare.
        data: The run file's own rows: those held out are what every model is measured on.
        yardstick: What measures.
        points: What is trained.
    """

    base: Any
    data: PreparedData
    yardstick: Yardstick
    points: list[Ready]


def rehearse(study: Study, tell: Callable[[str], None]) -> Rehearsed:
    """Load the base model, read all data, attach every adapter once.

    Args:
        study: The comparison.
        tell: Hears, in a line, what takes long.

    Raises:
        GraftError: Something in the run file, the data or the model cannot be used.
    """
    run = study.run
    tokenizer = load_tokenizer(run.base_model, run.revision)
    # Rows are cut alike for all points: to what the one with most virtual tokens can read.
    room = min(_room(planned, tokenizer) for planned in study.points)
    run = within(run, room)
    data = prepare_data(run.data, tokenizer, run.task_type, run.train.seed, tell)
    assert data.eval is not None  # the study asks for rows
    tokenizer.chat_template = data.chat_template
    yardstick = Yardstick(run, study.settings, data.eval, tokenizer, tell)
    base: Any = None
    points: list[Ready] = []
    for planned in study.points:
        ready, base = _attach_once(planned, study.seeds[0], room, data, base)
        points.append(ready)
    return Rehearsed(base, data, yardstick, points)


def _attach_once(
    planned: Planned, seed: int, room: int, of_run: PreparedData, base: Any
) -> tuple[Ready, Any]:
    """`planned` with its data read and its adapter attached, and the base model without it."""
    config = within(planned.with_seed(seed), room)
    # The comparison's folder was looked at as a whole.
    train = config.train.model_copy(update={"overwrite_output_dir": True})
    config = config.model_copy(update={"train": train})
    with about(planned.point.name):
        setup = set_up(config, False, lambda text: None, base=base)
        base = setup.model.unload()
        lesson = setup.lessons[None]
        if lesson.data.label_names != of_run.label_names:
            raise ConfigError("its rows have other labels than those of the run's `data`.")
    data = lesson.data if planned.point.method == FULL else None
    return Ready(planned, lesson.config, lesson.data.sha256, data), base


def _room(planned: Planned, tokenizer: PreTrainedTokenizerBase) -> int:
    with about(planned.point.name):
        return room_for_text(planned.config, tokenizer)
