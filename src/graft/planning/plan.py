"""What a run, or a model, will cost: `plan` asks, a `Plan` tells.

The memory of a step is `step`'s, its time `timing`'s, what to change `advice`'s. Here: which steps
are asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graft.config import TaskType
from graft.download import size_text
from graft.errors import ConfigError, GraftError, PlanError, did_you_mean
from graft.methods import method_names
from graft.planning.advice import Change, cheaper, what_fits
from graft.planning.case import FULL, Case, Planner, Way
from graft.planning.device import Device, known_device, parse_bytes, this_device
from graft.planning.question import Question, question_of_model, question_of_run
from graft.planning.words import duration_text, seconds_text
from graft.training.config import RunConfig
from graft.training.forecast import Forecast
from graft.training.runfile import load_run_config

__all__ = ["Plan", "is_run_file", "plan", "plan_of_run"]

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What steps of one model cost on a device.

    Attributes:
        source: The run file or model, as the user calls it.
        model_class: Name of the base model's class, as its config says.
        task_type: What its head is for.
        device: Where it is to run.
        cases: The steps that were asked for; the first is the run itself, where there is one.
        alternatives: The same in other ways: with or without checkpointing, another base.
        advice: What makes the first case fit, the cheapest first; where it does fit and takes
            more than half of what is free, what would need less.
    """

    source: str
    model_class: str
    task_type: TaskType
    device: Device
    cases: tuple[Case, ...]
    alternatives: tuple[Case, ...]
    advice: tuple[Change, ...]

    @property
    def case(self) -> Case:
        """The first one."""
        return self.cases[0]

    @property
    def parameters(self) -> int:
        """Numbers in the base model."""
        return next(c.base_parameters for c in self.cases if c.trace is not None)

    @property
    def fits(self) -> bool:
        """Whether the first case fits the device, its margin included."""
        return self.case.trace is not None and self.device.fits(self.case.peak)

    def verdict(self) -> str:
        """Whether the first case fits, in a sentence."""
        device, needs = self.device, self.device.needs(self.case.peak)
        margin = size_text(device.margin.over(self.case.peak))
        free = "has" if not device.here else "has free"
        told = (
            f"{size_text(self.case.peak)} at the peak and {margin} of margin "
            f"({device.margin.how}) are {size_text(needs)}; {device.name} {free} "
            f"{size_text(device.free_bytes)}: it {'fits' if self.fits else 'does not fit'}"
        )
        if self.fits:
            return f"{told}."
        return f"{told}. {self._first_advice()}"

    def _first_advice(self) -> str:
        fitting = next((c for c in self.advice if self.device.fits(c.case.peak)), None)
        if fitting is None:
            return "No change that is known here makes it fit; take a smaller model."
        return f"The cheapest change that makes it fit: {fitting.line()}."

    def lines(self) -> list[str]:
        """What a run says of its plan before it starts."""
        case, time = self.case, self.case.time
        told = f"plan: {size_text(case.peak)} at the peak ({case.memory.where})"
        if time is not None:
            told += f", {seconds_text(time.seconds)} a step "
            told += f"({seconds_text(time.low)} to {seconds_text(time.high)}; {time.how})"
            if case.workload.steps:
                told += f", {duration_text(time.seconds * case.workload.steps)} in all"
        return [told] if self.fits else [told, self.verdict()]

    def forecast(self) -> Forecast:
        """What training compares with what it measures."""
        case, time = self.case, self.case.time
        return Forecast(
            peak_bytes=case.peak,
            step_seconds=0.0 if time is None else time.seconds,
            low=0.0 if time is None else time.low,
            high=0.0 if time is None else time.high,
            cheaper=tuple(c.line() for c in self.advice if c.overrides is not None),
        )


def plan(
    source: str | Path | RunConfig,
    overrides: Sequence[str] = (),
    *,
    method: str | Sequence[str] | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    length: int | None = None,
    task_type: TaskType | str | None = None,
    memory: int | str | None = None,
    device: str | Device | None = None,
    exact: bool = False,
    tell: Tell | None = None,
) -> Plan:
    """What a run, or methods on a model, will cost; no weight is loaded.

    Args:
        source: A run file or what `load_run_config` makes of it; or the folder or hub id of a base
            model, of which only the config is read.
        overrides: `key=value`: of a run file its settings, with a model those of the methods, or
            of a run's `train`.
        method: One or several of the six, or `full`; None: the adapters of the run; with a model,
            all of them side by side.
        precision: How the base model is held: `fp32`, `bf16`, `8-bit`, `4-bit`; None: as the run
            or the hardware says.
        batch_size: Rows in a forward pass; None: as the run says, or 8.
        length: Tokens in each row; None: as the data of the run has them, or 512.
        task_type: Decides the head; None: as the run, or the model's config, says.
        memory: Bytes that there are, or a size such as `24GiB`; None: as the device has.
        device: A device that is not here, such as `A100-40GB`; None: this one.
        exact: Trace every layer of the model, and not two or three of each kind.
        tell: Hears, in a line, what takes long.

    Raises:
        GraftError: Something that cannot be used or planned.
    """
    there = _device(device, memory)
    methods = _methods(method)
    if isinstance(source, RunConfig) or is_run_file(source):
        changed = [*overrides, *([] if task_type is None else [f"task_type={task_type}"])]
        run = source if isinstance(source, RunConfig) else load_run_config(source, changed)
        if batch_size is not None:
            update = {"per_device_train_batch_size": batch_size}
            run = run.model_copy(update={"train": run.train.model_copy(update=update)})
        name = run.base_model if isinstance(source, RunConfig) else str(source)
        asked = question_of_run(run, name, there, methods, precision, length, tell)
    else:
        asked = question_of_model(
            str(source), overrides, there, methods, precision, batch_size, length, task_type
        )
    return _answer(asked, exact)


def is_run_file(source: str | Path) -> bool:
    """Whether `source` is the name of a run file, and not that of a model."""
    return Path(source).suffix.lower() in (".yaml", ".yml")


def plan_of_run(
    config: RunConfig,
    tell: Tell | None = None,
    device: Device | None = None,
    timed: bool = True,
) -> Plan | None:
    """The plan of a run that is about to start, without its alternatives.

    Args:
        config: The run.
        tell: Hears, in a line, what takes long, and why there is no plan.
        device: Where it is to run; None: here.
        timed: Whether it is to say how long a step takes.

    Returns:
        None where it cannot be planned.
    """
    told = tell or (lambda text: None)
    try:
        there = device or this_device()
        asked = question_of_run(config, config.base_model, there, tell=tell)
        return _answer(replace(asked, bases=(asked.base,)), exact=False, alone=True, timed=timed)
    except PlanError as error:
        told(f"no plan: {error}")
    except GraftError:
        pass  # a mistake in the run, of which training tells in its own words
    except Exception as error:  # a plan that cannot be made is no reason not to train
        told(f"no plan: {type(error).__name__}: {error}")
    return None


def _device(given: str | Device | None, memory: int | str | None) -> Device:
    device = given if isinstance(given, Device) else None
    if device is None:
        device = this_device() if given is None else known_device(str(given))
    if memory is None:
        return device
    size = parse_bytes(memory) if isinstance(memory, str) else memory
    return replace(device, total_bytes=size, free_bytes=size)


def _methods(method: str | Sequence[str] | None) -> tuple[str, ...]:
    """The methods by their names in run files; none where nothing is said."""
    if method is None:
        return ()
    words = method.split(",") if isinstance(method, str) else method
    names = [word.strip().lower().replace("-", "_") for word in words]
    every = (*method_names(), FULL)
    for name in names:
        if name not in (*every, "all"):
            raise ConfigError(f"There is no method {name!r}.{did_you_mean(name, every)}")
    return every if "all" in names else tuple(dict.fromkeys(names))


def _answer(asked: Question, exact: bool, alone: bool = False, timed: bool = True) -> Plan:
    """Plan what is asked; `alone` leaves out all other ways of doing it, `timed` says the time."""
    planner = Planner(
        asked.config, asked.task_type, asked.rows, asked.device, asked.num_labels, exact
    )
    own = Way(asked.base, asked.gradient_checkpointing)
    cases = tuple(planner.case(learner, own, timed) for learner in asked.learners)
    works = next((case for case in cases if case.problem is None), None)
    if works is None:
        assert cases[0].error is not None
        raise cases[0].error
    advice: list[Change] = []
    if len(cases) == 1 and not asked.device.fits(works.peak):
        advice = what_fits(planner, works, asked.device, asked.others)
    elif len(cases) == 1 and not asked.device.fits(2 * works.peak):  # it may become tight
        advice = cheaper(planner, works, asked.device)
    return Plan(
        source=asked.source,
        model_class=(asked.config.architectures or [type(asked.config).__name__])[0],
        task_type=asked.task_type,
        device=asked.device,
        cases=cases,
        alternatives=() if alone else tuple(_alternatives(planner, asked, own)),
        advice=tuple(advice),
    )


def _alternatives(planner: Planner, asked: Question, own: Way) -> Iterator[Case]:
    """Each learner on each base, with and without checkpointing, in the order of a table."""
    for learner in asked.learners:
        for base in asked.bases:
            if learner.name == FULL and base.bits is not None:
                continue  # quantised weights have no gradients
            for again in (False, True):
                way = Way(base, again)
                if way != own:
                    yield planner.case(learner, way, timed=base == own.base)
