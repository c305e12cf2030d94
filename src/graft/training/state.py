"""checkpoint-N: everything a run needs to go on as if it had never stopped.

The adapter lies in it as in any adapter folder (`PeftModel.save_pretrained`); beside it
`training_state.safetensors` (optimizer, best weights, random number generators of torch) and
`training_state.json` (the rest). A folder appears whole or not at all.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from graft.adapt import PeftModel
from graft.atomic import whole_folder
from graft.errors import CheckpointError
from graft.training.optimizer import load_optimizer_state, optimizer_state

__all__ = ["Progress", "Store", "Trained", "checkpoints"]

_TENSORS, _VALUES = "training_state.safetensors", "training_state.json"


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: Optimizer steps done.
        rows: Rows learned from.
        tokens: Tokens that were no padding.
        seconds: Time spent on training, without evaluations and saving.
        loss_sum: Sum of the loss over all targets since the last line of the log.
        loss_targets: Number of these targets.
        train_loss: Loss in the last line of the log.
        eval_before: Metrics of the base model before training.
        eval_last: Metrics of the last evaluation.
        eval_best: Metrics of the evaluation with the lowest loss.
        best_step: Its step.
        without_gain: Evaluations since then.
    """

    step: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_targets: int = 0
    train_loss: float | None = None
    eval_before: dict[str, float] = field(default_factory=dict)
    eval_last: dict[str, float] = field(default_factory=dict)
    eval_best: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    without_gain: int = 0

    @property
    def tokens_per_second(self) -> float:
        """0 before the first step."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Trained:
    """What changes while training, and with it what a checkpoint holds.

    Attributes:
        model: The base model with the adapter.
        optimizer: Over the adapter's parameters.
        schedule: Of the learning rate.
        progress: Where the run is.
        best: Weights of the best evaluation by name, where they are wanted at the end.
        device: Whose random numbers are used.
    """

    model: PeftModel
    optimizer: Optimizer
    schedule: LRScheduler
    device: torch.device
    progress: Progress = field(default_factory=Progress)
    best: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """Where a run keeps its adapters and checkpoints.

    Attributes:
        output_dir: The run's folder.
        origin: What the run was started from; a checkpoint of another origin is refused.
        save_beside: Writes what belongs beside an adapter (its tokenizer) into a folder.
        keep: Number of checkpoints to keep; None keeps all.
    """

    output_dir: Path
    origin: Mapping[str, Any] = field(default_factory=dict)
    save_beside: Callable[[Path], None] = lambda folder: None
    keep: int | None = None

    def save_adapter(self, model: PeftModel, folder: Path) -> None:
        """Write the adapter and what belongs beside it into `folder`."""
        model.save_pretrained(folder)
        self.save_beside(folder)

    def save_best(self, model: PeftModel) -> None:
        """Write `best/`."""
        with whole_folder(self.output_dir / "best") as folder:
            self.save_adapter(model, folder)

    def save(self, trained: Trained) -> Path:
        """Write `checkpoint-N` and remove those that are too many."""
        rng_tensors, rng_values = _rng_state(trained.device)
        tensors = {
            **_prefixed("optimizer", optimizer_state(trained.optimizer)),
            **_prefixed("best", trained.best),
            **_prefixed("rng", rng_tensors),
        }
        schedule = {k: v for k, v in trained.schedule.state_dict().items() if k != "lr_lambdas"}
        values = {
            "progress": asdict(trained.progress),
            "schedule": schedule,
            "rng": rng_values,
            "origin": dict(self.origin),
        }
        target = self.output_dir / f"checkpoint-{trained.progress.step}"
        with whole_folder(target) as folder:
            self.save_adapter(trained.model, folder)
            (folder / _TENSORS).write_bytes(to_bytes(tensors))
            (folder / _VALUES).write_text(json.dumps(values, indent=1), encoding="utf-8")
        if self.keep is not None:
            for old in checkpoints(self.output_dir)[: -self.keep]:
                shutil.rmtree(old)
        return target

    def load(self, checkpoint: Path, trained: Trained) -> None:
        """Put `trained` where the run was at `checkpoint`; its model holds the adapter already.

        Raises:
            CheckpointError: No training state there, a broken one, or that of another run.
        """
        tensors, values = _read(checkpoint)
        _compare(values["origin"], self.origin, checkpoint)
        load_optimizer_state(trained.optimizer, _under("optimizer", tensors))
        trained.schedule.load_state_dict({**trained.schedule.state_dict(), **values["schedule"]})
        rates = trained.schedule.get_last_lr()
        for group, rate in zip(trained.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        trained.best = {k: t.to(trained.device) for k, t in _under("best", tensors).items()}
        trained.progress = Progress(**values["progress"])
        _restore_rng(_under("rng", tensors), values["rng"], trained.device)


def _prefixed(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{kind}/{name}": t.detach().cpu().contiguous() for name, t in tensors.items()}


def _under(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{kind}/"
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        values = json.loads((folder / _VALUES).read_text(encoding="utf-8"))
        return load_file(folder / _TENSORS), values
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no training state ({_VALUES}, {_TENSORS}); it cannot be resumed."
        ) from None
    except (json.JSONDecodeError, SafetensorError) as error:
        raise CheckpointError(f"The training state in {folder} is broken: {error}.") from None


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"{checkpoint} is of another run: {'; '.join(changed)}. Resuming goes on with the "
            "same run: put these back, or start a new run in another folder."
        )


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [p for p in output_dir.iterdir() if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _rng_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every random number generator, as tensors and as JSON."""
    tensors = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        tensors[device.type] = torch.get_device_module(device).get_rng_state()
    numpy = np.random.get_state(legacy=False)
    keys = numpy["state"]["key"].tolist()
    return tensors, {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": keys}},
    }


def _restore_rng(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], device: torch.device
) -> None:
    """Put every random number generator where `_rng_state` found it."""
    torch.set_rng_state(tensors["cpu"])
    if device.type in tensors and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(tensors[device.type])
    version, keys, gauss = values["python"]
    random.setstate((version, tuple(keys), gauss))
    numpy = values["numpy"]
    keys = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": keys}})
