"""One thing to train in one way, planned: its memory and its time. Several share what they can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedConfig

from graft.config import PeftConfig, TaskType
from graft.errors import GraftError, PlanError
from graft.planning.device import Device
from graft.planning.formulas import Base
from graft.planning.memory import Memory
from graft.planning.operation import Operation
from graft.planning.setting import Setting
from graft.planning.step import Trace, trace_step
from graft.planning.timing import StepTime, step_time
from graft.planning.workload import Pass, RowSource, Workload

__all__ = ["FULL", "Case", "Learner", "Planner", "Way"]

FULL = "full"


@dataclass(frozen=True)
class Learner:
    """What learns.

    Attributes:
        name: The method, `full` where it is the base model itself, or the adapters of a joint run.
        adapters: Their configs by name.
    """

    name: str
    adapters: Mapping[str, PeftConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """How a step is done.

    Attributes:
        base: How the base model is held.
        gradient_checkpointing: Whether activations are computed again.
        parts: Into how many passes each batch is split.
        length: Most tokens of a row; None: as the rows are.
    """

    base: Base
    gradient_checkpointing: bool = False
    parts: int = 1
    length: int | None = None


@dataclass(frozen=True)
class Case:
    """A planned step.

    Attributes:
        learner: What learns.
        way: How.
        workload: The rows.
        trace: Of the step with the longest pass; None where there is a problem.
        time: Of an average step; None where it was not asked for or cannot be told.
        error: Why it cannot be; None where it can.
    """

    learner: Learner
    way: Way
    workload: Workload
    trace: Trace | None
    time: StepTime | None = None
    error: GraftError | None = None

    @property
    def problem(self) -> str | None:
        """Why it cannot be, in a sentence; None where it can."""
        return None if self.error is None else str(self.error)

    @property
    def memory(self) -> Memory:
        """At the peak."""
        assert self.trace is not None
        return self.trace.memory

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return self.memory.peak

    @property
    def base_parameters(self) -> int:
        """Numbers in the base model."""
        assert self.trace is not None
        added = 0 if self.learner.name == FULL else self.trace.trainable
        return self.trace.parameters - added

    @property
    def kept(self) -> int:
        """Bytes that stay between steps, however small a pass is."""
        return self.memory.weights + self.memory.adapter + self.memory.optimizer


class Planner:
    """Plans of one model with one source of rows.

    Args:
        config: The base model's config.
        task_type: Decides the head.
        source: The rows.
        device: Where it is to run.
        num_labels: Classes of a new head; None: as the config says.
        exact: Trace every layer.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        task_type: TaskType,
        source: RowSource,
        device: Device,
        num_labels: int | None = None,
        exact: bool = False,
    ) -> None:
        self.config, self.task_type, self.source = config, task_type, source
        self.device, self.num_labels, self.exact = device, num_labels, exact
        self._traces: dict[tuple[str, Way, tuple[Pass, ...]], Trace] = {}

    def case(self, learner: Learner, way: Way, timed: bool = True) -> Case:
        """The plan of a step; what stands in its way is its `problem`."""
        if learner.name == FULL and way.base.bits is not None:
            none = self.source.workload()
            error = PlanError(
                f"The weights of a base model in {way.base.name} have no gradients to train by."
            )
            return Case(learner, way, none, None, error=error)
        padded = self.device.kind != "cpu"
        workload = self.source.workload(way.parts, way.length, padded)
        try:
            trace = self._longest(learner, way, workload)
            if trace.packed == padded:
                workload = self.source.workload(way.parts, way.length, not padded)
                trace = self._longest(learner, way, workload)
            time = self._time(learner, way, workload) if timed else None
        except GraftError as error:
            return Case(learner, way, workload, None, error=error)
        return Case(learner, way, workload, trace, time)

    def _longest(self, learner: Learner, way: Way, workload: Workload) -> Trace:
        # From the second pass on there are gradients already.
        return self._trace(learner, way, (workload.longest,) * min(workload.passes, 2))

    def _time(self, learner: Learner, way: Way, workload: Workload) -> StepTime | None:
        if not self.device.here and not self.device.rates:
            return None  # nothing is known of its speed
        once = self._trace(learner, way, (workload.typical,))
        operations = once.operations
        if workload.passes > 1:
            twice = self._trace(learner, way, (workload.typical,) * 2).operations
            operations = _repeated(operations, twice, workload.passes)
        memory = once.memory
        passing = memory.peak - memory.weights - memory.adapter - memory.optimizer
        return step_time(operations, self.device, round(workload.tokens), passing)

    def _trace(self, learner: Learner, way: Way, passes: tuple[Pass, ...]) -> Trace:
        key = learner.name, replace(way, parts=1, length=None), passes
        if key not in self._traces:
            setting = Setting(
                config=self.config,
                task_type=self.task_type,
                batches=passes,
                adapters=learner.adapters,
                dtype=getattr(torch, way.base.dtype),
                quantised=way.base.bits,  # pyright: ignore[reportArgumentType]
                gradient_checkpointing=way.gradient_checkpointing,
                num_labels=self.num_labels,
                device=self.device.kind,
            )
            self._traces[key] = trace_step(setting, self.exact)
        return self._traces[key]


def _repeated(
    one: Sequence[Operation], two: Sequence[Operation], passes: int
) -> tuple[Operation, ...]:
    """The operations of a step of `passes` equal passes, from those of one pass and of two."""
    counts = Counter({_key(op): (2 - passes) * op.count for op in one})
    counts.update({_key(op): (passes - 1) * op.count for op in two})
    known = {_key(op): op for op in (*one, *two)}
    return tuple(replace(known[key], count=n) for key, n in counts.items() if n > 0)


def _key(operation: Operation) -> tuple[str, str]:
    return operation.name, repr((operation.arguments, operation.keywords))
