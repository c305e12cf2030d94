"""graft's own training step, run on fake tensors: what it holds, and what it calls."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from graft.errors import PlanError, did_you_mean
from graft.planning.batches import make_passes
from graft.planning.extrapolation import course
from graft.planning.memory import Memory
from graft.planning.operation import Operation
from graft.planning.quantised import quantised_weights
from graft.planning.setting import Setting
from graft.planning.skeleton import Skeleton, make_fake, make_model
from graft.planning.tracing import Phase, Recorder
from graft.training.config import TrainConfig
from graft.training.forward import Forward, Part, make_forward, without_dropout
from graft.training.optimizer import make_optimizer, trainable_parameters

__all__ = ["Trace", "trace_step"]

_ROUNDING = {"cuda": 512}  # memory is handed out in multiples of so many bytes


@dataclass(frozen=True)
class Trace:
    """What a step holds and calls.

    Attributes:
        memory: Its bytes.
        operations: Its calls.
        packed: Whether rows are packed.
        how: How batches meet the model, in words.
        parameters: Numbers in the base model and its adapters.
        trainable: Those that are trained.
    """

    memory: Memory
    operations: tuple[Operation, ...]
    packed: bool
    how: str
    parameters: int
    trainable: int


def trace_step(setting: Setting, exact: bool = False) -> Trace:
    """Run the step of `setting` on fake tensors.

    Args:
        setting: What to plan.
        exact: Run every layer, and not one in the place of all that are like it.

    Raises:
        PlanError: A setting without rows, or a model that cannot be run without numbers.
        GraftError: A config that describes no model, or an adapter that it cannot have.
    """
    _check(setting)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    skeleton = make_fake(make_model(setting), fake, exact)
    forward = make_forward(skeleton.model, setting.task_type, setting.device, proven=False)
    step = _Step(setting, skeleton, forward, fake)
    try:
        step.run()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise PlanError(
            f"{type(skeleton.model.base_model).__name__} decides by its numbers what it computes "
            f"({error.func}), so its step cannot be planned from a config."
        ) from None
    return Trace(
        Memory.of(course(step.recorder)),
        step.recorder.operations(),
        not forward.pads,
        forward.how,
        skeleton.parameters,
        skeleton.trainable,
    )


def _check(setting: Setting) -> None:
    if not setting.batches or not all(setting.batches):
        raise PlanError("A step of 0 rows has no cost to plan; give each batch 1 row or more.")
    rows = [row for batch in setting.batches for row in batch]
    for row in rows:
        if row.tokens < 1:
            raise PlanError(f"A row of {row.tokens} tokens cannot be planned; give 1 or more.")
        if row.adapter is not None and row.adapter not in setting.adapters:
            hint = did_you_mean(row.adapter, setting.adapters)
            raise PlanError(f"A row is of the adapter {row.adapter!r}, which is not there.{hint}")
    if len(setting.adapters) > 1 and any(row.adapter is None for row in rows):
        raise PlanError("With several adapters each row must name its own.")


class _Step:
    """One optimizer step, as `training.rounds` and `training.learner` take it."""

    def __init__(
        self, setting: Setting, skeleton: Skeleton, forward: Forward, fake: FakeTensorMode
    ) -> None:
        self.setting, self.skeleton, self.forward = setting, skeleton, forward
        self.model = skeleton.model
        base: Any = self.model.base_model
        head = base.get_output_embeddings()
        width = 0 if head is None else head.weight.shape[0]
        self.recorder = Recorder(fake, width, _ROUNDING.get(setting.device, 1))
        self._pass = 0

    def run(self) -> None:
        """Take the step, watched by the recorder."""
        base: Any = self.model.base_model
        self.model.train()
        if self.setting.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        passes = make_passes(self.setting, base.config)
        learners = self._learners()
        self._hold()
        with _without_garbage(), without_dropout(self.model), self._watching(), self.recorder:
            for self._pass, parts in enumerate(passes):
                self._backward(parts)
            self.recorder.enter(Phase("optimizer", None, self._pass))
            for parameters, optimizer in learners:
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                self._keep_state(optimizer)
                optimizer.zero_grad()

    def _learners(self) -> list[tuple[list[nn.Parameter], torch.optim.Optimizer]]:
        every = trainable_parameters(self.model)
        of_one = [list(adapter.parameters()) for adapter in self.model.adapters.values()]
        learners = []
        for mine in of_one or [list(every.values())]:
            ids = {id(parameter) for parameter in mine}
            own = {name: p for name, p in every.items() if id(p) in ids}
            learners.append((list(own.values()), make_optimizer(own, TrainConfig(), 1e-4)))
        return learners

    def _backward(self, parts: Sequence[Part]) -> None:
        self.recorder.enter(Phase("forward", None, self._pass))
        names = list(self.model.adapters)
        self.model.router.noise = dict.fromkeys(names, 0)
        loss, _ = self.forward.loss(parts)
        self.recorder.enter(Phase("backward", None, self._pass))
        loss.backward()

    # --- what the recorder is told --------------------------------------------------------

    def _hold(self) -> None:
        owners, quantised = self.skeleton.owners, quantised_weights(self.model.base_model)
        for kind, module in (("weights", self.model.base_model), ("adapter", self.model.adapters)):
            for tensor in [*module.parameters(), *module.buffers()]:
                own = id(tensor)
                self.recorder.hold(tensor, kind, owners.get(own), quantised.get(own))

    def _keep_state(self, optimizer: torch.optim.Optimizer) -> None:
        """What the optimizer has made now was there before any step but the first."""
        for parameter, state in optimizer.state.items():
            for tensor in state.values():
                owner = self.skeleton.owners.get(id(parameter))
                self.recorder.was_there(tensor, "optimizer", owner)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Tell the recorder what is under way, inside the block."""
        with ExitStack() as stack:
            for module in self.skeleton.layers:
                before = module.register_forward_pre_hook(self._before)
                after = module.register_forward_hook(self._after, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(self._graded)
                    stack.callback(handle.remove)
            for owner, name in ((self.model, "compose"), (self.model._composer, "forward_inputs")):
                if owner is not None:
                    vars(owner)[name] = self._making_prefix(getattr(owner, name))
                    stack.callback(vars(owner).pop, name)
            yield

    def _before(self, module: nn.Module, args: Any) -> None:
        again = self.recorder.phase.name in ("backward", "recomputation")
        name = "recomputation" if again else "forward"
        self.recorder.enter(Phase(name, self.skeleton.layers[module], self._pass))

    def _after(self, module: nn.Module, args: Any, out: Any) -> None:
        layer, number = self.skeleton.layers[module], self._pass
        backward = Phase("backward", layer, number)
        if self.recorder.phase.name == "recomputation":
            self.recorder.enter(backward)
            return
        shown = out[0] if isinstance(out, tuple) else out
        if isinstance(shown, Tensor) and shown.requires_grad:
            shown.register_hook(lambda _: self.recorder.enter(backward))
        if layer.index == layer.depth - 1:
            name = "loss" if module is self.skeleton.last else "forward"
            self.recorder.enter_soon(Phase(name, None, number))

    def _graded(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        owner = self.skeleton.owners.get(id(parameter))
        self.recorder.is_of(parameter.grad, "gradients", owner)

    def _making_prefix(self, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.recorder.making("prefix"):
                return function(*args, **kwargs)

        return wrapped


@contextmanager
def _without_garbage() -> Iterator[None]:
    """The collector of cycles does not come in between, so that a trace is what it is each time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
