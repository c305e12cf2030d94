"""graft's own training step, run on fake tensors: what it holds, and what it calls."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
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

from graft.errors import GraftError, PlanError, did_you_mean
from graft.packing import Unpackable
from graft.planning.batches import make_passes
from graft.planning.extrapolation import course
from graft.planning.memory import Memory
from graft.planning.operation import Operation
from graft.planning.quantised import quantised_weights
from graft.planning.setting import Setting
from graft.planning.skeleton import Layer, Skeleton, make_fake, make_model
from graft.planning.tracing import Phase, Recorder
from graft.training.config import TrainConfig
from graft.training.forward import (
    Forward,
    Padded,
    Part,
    make_forward,
    propagate,
    without_dropout,
)
from graft.training.lean import lean_layers
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
    step = _taken(setting, exact)
    return Trace(
        Memory.of(course(step.recorder)),
        step.recorder.operations(),
        not step.forward.pads,
        step.forward.how,
        step.skeleton.parameters,
        step.skeleton.trainable,
    )


def _taken(setting: Setting, exact: bool, reason: str | None = None) -> _Step:
    """The step, taken; on padded rows where there is a reason."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    skeleton = make_fake(make_model(setting), fake, exact)
    model = skeleton.model
    name = type(model.base_model).__name__
    if reason is None:
        forward = make_forward(model, setting.task_type, setting.device, proven=False)
    else:
        forward = Padded(model, setting.task_type, reason)
    step = _Step(setting, skeleton, forward, fake)
    try:
        step.run()
    except Unpackable as error:
        return _taken(setting, exact, str(error))
    except GraftError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise PlanError(
            f"{name} decides by its numbers what it computes ({error.func}), so its step cannot be "
            "planned from a config."
        ) from None
    except Exception as error:  # whatever code of a model's own makes of such tensors
        if forward.pads:
            raise PlanError(f"{name} does not run without numbers: {error}") from error
        return _taken(setting, exact, f"{name} does not run on packed rows")
    return step


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
        parts = itertools.chain.from_iterable(passes)
        self._hold(tensor for part in parts for tensor in part.batch.inputs.values())
        with (
            _without_garbage(),
            _without_log(),
            without_dropout(self.model),
            lean_layers(self.model),
            self._watching(),
            self.recorder,
        ):
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
        owners = [self.model if p.adapter is None else self.model.adapter(p.adapter) for p in parts]
        propagate(loss, self.model, [owner.parameters() for owner in owners])

    # --- what the recorder is told --------------------------------------------------------

    def _hold(self, inputs: Iterable[Tensor]) -> None:
        owners, quantised = self.skeleton.owners, quantised_weights(self.model.base_model)
        for kind, module in (("weights", self.model.base_model), ("adapter", self.model.adapters)):
            for tensor in [*module.parameters(), *module.buffers()]:
                own = id(tensor)
                self.recorder.hold(tensor, kind, owners.get(own), quantised.get(own))
        for tensor in inputs:
            self.recorder.hold(tensor, "workspace")

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
                after = module.register_forward_hook(self._after)
                stack.callback(before.remove)
                stack.callback(after.remove)
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(self._graded)
                    stack.callback(handle.remove)
            router = vars(self.model.router)
            router["checkpoint_contexts"] = self._contexts(self.model.router.checkpoint_contexts)
            stack.callback(router.pop, "checkpoint_contexts")
            for owner, name in ((self.model, "compose"), (self.model._composer, "forward_inputs")):
                if owner is not None:
                    vars(owner)[name] = self._making_prefix(getattr(owner, name))
                    stack.callback(vars(owner).pop, name)
            yield

    def _before(self, module: nn.Module, args: Any) -> None:
        self.recorder.enter(Phase("forward", self.skeleton.layers[module], self._pass))

    def _after(self, module: nn.Module, args: Any, out: Any) -> None:
        layer, number = self.skeleton.layers[module], self._pass
        shown = out[0] if isinstance(out, tuple) else out
        if isinstance(shown, Tensor) and shown.requires_grad:
            shown.register_hook(lambda _: self.recorder.enter(Phase("backward", layer, number)))
        if layer.index == layer.depth - 1:
            name = "loss" if module is self.skeleton.last else "forward"
            self.recorder.enter_soon(Phase(name, None, number))

    def _contexts(self, own: Any) -> Any:
        """The contexts of a checkpointed layer, of which the second is that of its recomputation.

        Hooks of a layer do not run again with it.
        """

        @contextmanager
        def again(layer: Layer | None, number: int, inner: Any) -> Iterator[None]:
            self.recorder.enter(Phase("recomputation", layer, number))
            try:  # it is broken off once it has made what is needed
                with inner:
                    yield
            finally:
                self.recorder.enter(Phase("backward", layer, number))

        def contexts() -> Any:
            forward, recomputation = own()
            return forward, again(self.recorder.phase.layer, self._pass, recomputation)

        return contexts

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
def _without_log() -> Iterator[None]:
    """torch prints no traceback of what a fake tensor cannot do: it is said in a sentence."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = was


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
