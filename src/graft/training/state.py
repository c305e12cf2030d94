"""checkpoint-N: everything a run needs to go on as if it had never stopped.

The adapter lies in it as in any adapter folder (`PeftModel.save_pretrained`); beside it
`training_state.safetensors` (optimizer, best weights) and `training_state.json` (the rest). Each
of several adapters has a folder of its name in it, and `round.json` says which left the run. A
folder appears whole or not at all. No generator of random numbers is kept: what a step draws
follows from the seed and the step.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from graft.adapt import PeftModel
from graft.adapt.checkpoint import save
from graft.atomic import whole_folder
from graft.errors import CheckpointError
from graft.training.optimizer import load_optimizer_state, optimizer_state

__all__ = ["Failure", "Progress", "Store", "Trained", "adapters_at", "checkpoints", "failures_at"]

_TENSORS, _VALUES = "training_state.safetensors", "training_state.json"
_ROUND = "round.json"


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


@dataclass(frozen=True)
class Failure:
    """How an adapter left its run.

    Attributes:
        reason: Why.
        progress: Where it was.
    """

    reason: str
    progress: Progress


@dataclass
class Trained:
    """What changes while an adapter trains, and with it what a checkpoint holds.

    Attributes:
        optimizer: Over the adapter's parameters.
        schedule: Of the learning rate.
        progress: Where the run is.
        best: Weights of the best evaluation by name, where they are wanted at the end.
    """

    optimizer: Optimizer
    schedule: LRScheduler
    progress: Progress = field(default_factory=Progress)
    best: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """Where a run keeps its adapters and checkpoints.

    An adapter is called None where it is the run's only one: its files are the run's.

    Attributes:
        output_dir: The run's folder.
        origins: What each adapter was started from; a checkpoint of another origin is refused.
        save_beside: Writes what belongs beside an adapter (its tokenizer) into a folder.
        keep: Number of checkpoints to keep; None keeps all.
    """

    output_dir: Path
    origins: Mapping[str | None, Mapping[str, Any]] = field(default_factory=dict)
    save_beside: Callable[[str | None, Path], None] = lambda name, folder: None
    keep: int | None = None

    def folder(self, name: str | None, inside: Path | None = None) -> Path:
        """Where the files of an adapter are, in the run's folder or in `inside`."""
        root = inside or self.output_dir
        return root if name is None else root / name

    def save_adapter(self, model: PeftModel, name: str | None, folder: Path) -> None:
        """Write an adapter and what belongs beside it into `folder`."""
        if name is None:
            model.save_pretrained(folder)
        else:
            save(model.adapter(name), folder)
        self.save_beside(name, folder)

    def save_best(self, model: PeftModel, name: str | None) -> None:
        """Write `best/` of an adapter."""
        with whole_folder(self.folder(name) / "best") as folder:
            self.save_adapter(model, name, folder)

    def save(
        self,
        model: PeftModel,
        trained: Mapping[str | None, Trained],
        number: int,
        failures: Mapping[str | None, Failure],
    ) -> Path:
        """Write `checkpoint-NUMBER` and remove those that are too many.

        Args:
            model: The base model with the adapters.
            trained: The state of each adapter that has not failed.
            number: Of the round.
            failures: How the others left the run.
        """
        target = self.output_dir / f"checkpoint-{number}"
        with whole_folder(target) as folder:
            for name, state in trained.items():
                own = self.folder(name, folder)
                self.save_adapter(model, name, own)
                (own / _TENSORS).write_bytes(to_bytes(_tensors(state)))
                values = _values(state, self.origins.get(name, {}))
                (own / _VALUES).write_text(json.dumps(values, indent=1), encoding="utf-8")
            if None not in trained:
                left = {name: asdict(failure) for name, failure in failures.items()}
                values = {"round": number, "failures": left}
                (folder / _ROUND).write_text(json.dumps(values, indent=1), encoding="utf-8")
        if self.keep is not None:
            for old in checkpoints(self.output_dir)[: -self.keep]:
                shutil.rmtree(old)
        return target

    def load(
        self, checkpoint: Path, trained: Mapping[str | None, Trained]
    ) -> tuple[int, dict[str | None, str]]:
        """Put `trained` where the run was at `checkpoint`; the model holds its adapters already.

        Returns:
            The number of the round, and why adapters left the run before it, by name.

        Raises:
            CheckpointError: No training state there, a broken one, or that of another run.
        """
        failures = failures_at(checkpoint)
        for name, state in trained.items():
            if name in failures:
                state.progress = failures[name].progress
            else:
                self._load(self.folder(name, checkpoint), name, state)
        reasons = {name: failure.reason for name, failure in failures.items()}
        return int(checkpoint.name.rpartition("-")[2]), reasons

    def _load(self, folder: Path, name: str | None, trained: Trained) -> None:
        tensors, values = _read(folder)
        _compare(values["origin"], self.origins.get(name, {}), folder)
        load_optimizer_state(trained.optimizer, _under("optimizer", tensors))
        trained.schedule.load_state_dict({**trained.schedule.state_dict(), **values["schedule"]})
        rates = trained.schedule.get_last_lr()
        for group, rate in zip(trained.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        device = trained.optimizer.param_groups[0]["params"][0].device
        trained.best = {k: t.to(device) for k, t in _under("best", tensors).items()}
        trained.progress = Progress(**values["progress"])


def adapters_at(checkpoint: Path) -> set[str]:
    """The adapters of a run of several at `checkpoint`, those that had left it too.

    Raises:
        CheckpointError: The file that says who left is broken.
    """
    held = {path.parent.name for path in checkpoint.glob(f"*/{_VALUES}")}
    return held | {str(name) for name in failures_at(checkpoint)}


def failures_at(checkpoint: Path) -> dict[str | None, Failure]:
    """How adapters had left the run at `checkpoint`, by name; none in a run of one adapter.

    Raises:
        CheckpointError: The file that says so is broken.
    """
    path = checkpoint / _ROUND
    if not path.is_file():
        return {}
    try:
        left = json.loads(path.read_text(encoding="utf-8"))["failures"]
        return {
            name: Failure(own["reason"], Progress(**own["progress"])) for name, own in left.items()
        }
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is broken: {error}.") from None


def _tensors(trained: Trained) -> dict[str, Tensor]:
    return {
        **_prefixed("optimizer", optimizer_state(trained.optimizer)),
        **_prefixed("best", trained.best),
    }


def _values(trained: Trained, origin: Mapping[str, Any]) -> dict[str, Any]:
    schedule = {k: v for k, v in trained.schedule.state_dict().items() if k != "lr_lambdas"}
    return {"progress": asdict(trained.progress), "schedule": schedule, "origin": dict(origin)}


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
