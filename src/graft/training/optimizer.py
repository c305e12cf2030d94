"""The optimizer and the learning rate's schedule, and their state by parameter name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from graft.errors import CheckpointError, ConfigError
from graft.training.config import TrainConfig

__all__ = [
    "learning_rates",
    "load_optimizer_state",
    "make_optimizer",
    "make_schedule",
    "optimizer_state",
    "trainable_parameters",
]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], settings: TrainConfig, learning_rate: float
) -> torch.optim.AdamW:
    """AdamW over `parameters`; vectors are not decayed."""
    decayed, plain = [], []
    for named in parameters.items():
        is_vector = sum(size > 1 for size in named[1].shape) < 2
        (plain if is_vector else decayed).append(named)
    groups = [
        {"params": named, "weight_decay": decay}
        for named, decay in ((decayed, settings.weight_decay), (plain, 0.0))
        if named
    ]
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
    )


def make_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainConfig, steps: int
) -> LRScheduler:
    """transformers' schedule over `steps` optimizer steps.

    Raises:
        ConfigError: `lr_scheduler_kwargs` that the schedule does not take, or lacks.
    """
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * steps)
    try:
        return get_scheduler(
            settings.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=settings.lr_scheduler_kwargs,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"train.lr_scheduler_kwargs={settings.lr_scheduler_kwargs} does not fit "
            f"lr_scheduler_type={settings.lr_scheduler_type!r}: {error}."
        ) from None


def learning_rates(schedule: LRScheduler, steps: int) -> list[float]:
    """The learning rate of each of the first `steps` steps."""
    assert isinstance(schedule, LambdaLR)  # as transformers' schedules of the step alone all are
    peak = float(schedule.base_lrs[0])
    return [peak * schedule.lr_lambdas[0](step) for step in range(steps)]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state as `FIELD/PARAMETER`."""
    return {
        f"{field}/{name}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take in what `optimizer_state` gave.

    Raises:
        CheckpointError: State of a parameter that the optimizer does not have.
    """
    packed = optimizer.state_dict()
    place = {
        name: index
        for group in packed["param_groups"]
        for name, index in zip(group["param_names"], group["params"], strict=True)
    }
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        field, _, name = key.partition("/")
        if name not in place:
            raise CheckpointError(
                f"The checkpoint trained {name}, which this model does not train."
            )
        state.setdefault(place[name], {})[field] = value
    optimizer.load_state_dict({**packed, "state": state})
