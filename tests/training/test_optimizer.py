from __future__ import annotations

import typing

import pytest
import torch
from torch import nn
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from graft.errors import CheckpointError, ConfigError
from graft.training.config import Schedule, TrainConfig
from graft.training.optimizer import (
    load_optimizer_state,
    make_optimizer,
    make_schedule,
    optimizer_state,
)


def make_parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    shapes = {"matrix": (3, 4), "bias": (4,), "factors": (4, 1)}
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def step(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> None:
    sum((p**3).sum() for p in parameters.values()).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_only_matrices_decay():
    parameters = make_parameters()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = make_optimizer(parameters, TrainConfig(weight_decay=0.5), learning_rate=0.1)
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(parameters["matrix"].data, before["matrix"] * (1 - 0.1 * 0.5))
    assert torch.equal(parameters["bias"], before["bias"])
    assert torch.equal(parameters["factors"], before["factors"])


def test_state_travels_by_name():
    settings = TrainConfig(weight_decay=0.1)
    parameters = make_parameters()
    optimizer = make_optimizer(parameters, settings, 0.01)
    for _ in range(3):
        step(optimizer, parameters)
    # The same parameters in another order, as another process may list them.
    copies = {
        name: nn.Parameter(parameters[name].detach().clone()) for name in reversed(parameters)
    }
    other = make_optimizer(copies, settings, 0.01)
    load_optimizer_state(other, {k: v.clone() for k, v in optimizer_state(optimizer).items()})
    for _ in range(2):
        step(optimizer, parameters)
        step(other, copies)
    for name, parameter in parameters.items():
        assert torch.equal(copies[name], parameter)


def test_state_of_unknown_parameters_is_refused():
    optimizer = make_optimizer(make_parameters(), TrainConfig(), 0.01)
    with pytest.raises(CheckpointError, match="ghost"):
        load_optimizer_state(optimizer, {"exp_avg/ghost": torch.zeros(1)})


EXTRA = {
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
    "warmup_stable_decay": {"num_decay_steps": 5},
}


@pytest.mark.parametrize("name", typing.get_args(Schedule))
def test_schedules_are_those_of_transformers(name):
    kwargs = EXTRA.get(name, {})
    settings = TrainConfig(lr_scheduler_type=name, lr_scheduler_kwargs=kwargs, warmup_ratio=0.1)
    ours = make_optimizer(make_parameters(), settings, 0.1)
    theirs = torch.optim.AdamW(make_parameters().values(), lr=0.1)
    a = make_schedule(ours, settings, 20)
    b = get_scheduler(name, theirs, 2, 20, scheduler_specific_kwargs=kwargs)
    for _ in range(20):
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        ours.step(), theirs.step(), a.step(), b.step()


def test_only_schedules_that_follow_from_the_step_are_offered():
    kept_apart = {SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY}  # they follow the loss
    assert set(typing.get_args(Schedule)) == {s.value for s in set(SchedulerType) - kept_apart}


@pytest.mark.parametrize(
    ("name", "kwargs"), [("cosine_with_min_lr", {}), ("linear", {"power": 2}), ("cosine", {"x": 1})]
)
def test_arguments_that_do_not_fit_a_schedule(name, kwargs):
    settings = TrainConfig(lr_scheduler_type=name, lr_scheduler_kwargs=kwargs)
    with pytest.raises(ConfigError, match="lr_scheduler_kwargs"):
        make_schedule(make_optimizer(make_parameters(), settings, 0.1), settings, 10)
