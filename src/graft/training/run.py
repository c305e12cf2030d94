"""A run file's run: the loop over what `setup` made, and the files that stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
import yaml
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graft.adapt import PeftModel
from graft.atomic import write_text
from graft.data.collate import Collator
from graft.errors import ConfigError
from graft.hub import LABELS_NAME
from graft.training.attachment import attach
from graft.training.config import RunConfig
from graft.training.forecast import Forecast, Watch
from graft.training.learner import Run
from graft.training.loop import FitResult, TrainingError, fit
from graft.training.report import Callback, draw_losses
from graft.training.runfile import dump_run_config
from graft.training.setup import Setup, set_up
from graft.training.state import checkpoints
from graft.training.summary import summary_of, versions

__all__ = ["Fitted", "TrainResult", "train"]

_OF_A_RUN = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "graft_state.safetensors",
    "chat_template.jinja",
    LABELS_NAME,
    "run.yaml",
    "train_log.jsonl",
    "summary.json",
    "loss.png",
)
# What a new run with an adapter of the same name would write anew.
_BESIDE_AN_ADAPTER = (
    "README.md",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        output_dir: Folder with the adapter, or with a folder for each of several.
        summary: What its `summary.json` says.
        model: The base model with the trained adapters.
        tokenizer: Its tokenizer; in a run of one adapter with the chat template that was trained.
        results: Of each adapter, by name.
    """

    output_dir: Path
    summary: dict[str, Any]
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    results: dict[str, FitResult]

    @property
    def failures(self) -> dict[str, str]:
        """Why adapters left the run before its end, by name."""
        return {name: own.failure for name, own in self.results.items() if own.failure}


@dataclass(frozen=True)
class Fitted:
    """What training on rows that were given came to.

    Attributes:
        model: The base model with the trained adapters.
        results: Of each adapter, by name.
    """

    model: PeftModel
    results: dict[str, FitResult]


@overload
def train(
    what: RunConfig,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    base: PreTrainedModel | None = None,
    forecast: Forecast | None = None,
) -> TrainResult: ...


@overload
def train(
    what: nn.Module, runs: Mapping[str, Run], *, callbacks: Sequence[Callback] = ()
) -> Fitted: ...


def train(
    what: RunConfig | nn.Module,
    runs: Mapping[str, Run] | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> TrainResult | Fitted:
    """Train adapters: those of a run file, or those that are given for a model in memory.

    `train(config)` does what the run file says and writes its folder. `train(model, runs)` attaches
    an adapter for each of `runs` and trains them together, each as it would be alone; it writes
    nothing.

    Args:
        what: The run, or a base model, which may have adapters.
        runs: By the adapter's name its config, rows and settings. Rows are mappings with
            `input_ids` and `labels`, as `prepare_data` makes them.
        callbacks: Who is told; `Terminal()` shows progress.
        **options: Of a run file's run. `resume`: go on from the newest checkpoint in its folder.
            `base`: the base model, where it is loaded already, bare; it decides the precision, and
            the result's `model.unload()` gives it back. `forecast`: what was planned, to be
            compared with what is measured.

    Raises:
        GraftError: Something in the run file, the data or the model cannot be used; the output
            folder is then as it was.
        TrainingError: The loss of every adapter is no number any more.
    """
    if isinstance(what, RunConfig):
        return _run(what, callbacks, **options)
    if not runs or options:
        raise ConfigError(
            "train(model, runs) needs a run for each adapter, such as {'a': Run(...)}."
        )
    return _fit(what, runs, callbacks)


def _fit(base: nn.Module, runs: Mapping[str, Run], callbacks: Sequence[Callback]) -> Fitted:
    configs = {name: run.config for name, run in runs.items()}
    lacking = next((name for name, config in configs.items() if config is None), None)
    if lacking is not None:
        raise ConfigError(
            f"The run of {lacking!r} has no config; give it one, such as LoraConfig()."
        )
    tasks = {config.task_type for config in configs.values() if config is not None}
    task_type, *others = sorted(tasks, key=str)
    if others or task_type is None:
        raise ConfigError(
            "Adapters that train together need one task_type in their configs, not "
            f"{', '.join(sorted(str(task) for task in tasks))}."
        )
    model = base if isinstance(base, PeftModel) else PeftModel(base)
    for name, run in runs.items():
        assert run.config is not None
        attach(model, run.config, run.settings.seed, name)
    results = fit(model, runs, Collator(None, task_type), task_type=task_type, callbacks=callbacks)
    return Fitted(model, results)


def _run(
    config: RunConfig,
    callbacks: Sequence[Callback],
    resume: bool = False,
    base: PreTrainedModel | None = None,
    forecast: Forecast | None = None,
) -> TrainResult:
    setup = set_up(config, resume, lambda text: _note(callbacks, text), base)
    try:
        return _train(setup, callbacks, forecast)
    except BaseException:
        if base is not None:  # whoever gave it may go on with it
            setup.model.unload()
        raise


def _train(setup: Setup, callbacks: Sequence[Callback], forecast: Forecast | None) -> TrainResult:
    for note in setup.notes:
        _note(callbacks, note)
    loop = setup.loop()
    _make_folder(setup)
    watch = Watch(loop, setup.resident_bytes, forecast)
    try:
        results = loop.run([*callbacks, watch], largest_first=forecast is not None)
    except KeyboardInterrupt:
        found = checkpoints(setup.output_dir)
        then = f"--resume goes on from {found[-1]}" if found else "there is no checkpoint yet"
        raise KeyboardInterrupt(f"stopped; {then}.") from None
    except RuntimeError as error:
        # What the CPU's allocator raises has no class of its own.
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise TrainingError(_out_of_memory(forecast)) from error
        raise
    summary = _write(setup, results, watch.measured())
    names = zip(setup.config.adapters, setup.lessons, strict=True)
    return TrainResult(
        output_dir=setup.output_dir,
        summary=summary,
        model=setup.model,
        tokenizer=setup.tokenizer,
        results={name: results[own or ""] for name, own in names},
    )


def _note(callbacks: Sequence[Callback], text: str) -> None:
    for callback in callbacks:
        callback.note(text)


def _out_of_memory(forecast: Forecast | None) -> str:
    if forecast is not None and forecast.cheaper:
        return f"The device has not enough memory. Set {' or '.join(forecast.cheaper[:2])}."
    return (
        "The device has not enough memory. Halve `train.per_device_train_batch_size` and double "
        "`train.gradient_accumulation_steps` (the result is the same), or set "
        "`train.gradient_checkpointing=true`."
    )


def _make_folder(setup: Setup) -> None:
    """Make the output folder, now that nothing stands in the way of the first step."""
    setup.output_dir.mkdir(parents=True, exist_ok=True)
    if setup.checkpoint is not None:
        return
    for name in _former_adapters(setup.output_dir):
        folder = setup.output_dir / name
        _clear(folder)
        for pattern in _BESIDE_AN_ADAPTER:
            for path in folder.glob(pattern):
                path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
    _clear(setup.output_dir)
    for name, lesson in setup.lessons.items():
        if name is not None:
            folder = setup.store.folder(name)
            folder.mkdir(exist_ok=True)
            _clear(folder)
            write_text(folder / "run.yaml", dump_run_config(lesson.config))
    write_text(setup.output_dir / "run.yaml", dump_run_config(_whole(setup)))


def _former_adapters(output_dir: Path) -> list[str]:
    """The adapters of a run of several that the folder holds."""
    path = output_dir / "run.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    adapters = raw.get("adapters") if isinstance(raw, dict) else None
    names = list(adapters) if isinstance(adapters, dict) and len(adapters) > 1 else []
    return [name for name in names if (output_dir / str(name) / "run.yaml").is_file()]


def _whole(setup: Setup) -> RunConfig:
    """The run as it is, with what was left open filled in."""
    return setup.lessons[None].config if None in setup.lessons else setup.config


def _clear(output_dir: Path) -> None:
    """Remove a former run; files that are not a run's stay."""
    for folder in [*checkpoints(output_dir), output_dir / "best"]:
        if (folder / "adapter_config.json").is_file() or (folder / "round.json").is_file():
            shutil.rmtree(folder)
    for name in _OF_A_RUN:
        (output_dir / name).unlink(missing_ok=True)


def _write(
    setup: Setup, results: Mapping[str, FitResult], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """Write what stays of a run, and give the summary of the whole."""
    summaries: dict[str, Any] = {}
    for name, lesson in setup.lessons.items():
        result, folder = results[name or ""], setup.store.folder(name)
        summaries[name or ""] = summary_of(setup.model, name, lesson, result)
        if name is None:
            summaries[""] |= measured
        if result.failure is None:
            setup.store.save_adapter(setup.model, name, folder)
        draw_losses({"": result.records}, folder / "loss.png")
        _write_json(folder / "summary.json", summaries[name or ""])
    if None in setup.lessons:
        return summaries[""]
    whole = {
        "base_model": setup.config.base_model,
        "task_type": str(setup.config.task_type),
        "adapters": summaries,
        "seconds": max(result.progress.seconds for result in results.values()),
        "tokens": sum(result.progress.tokens for result in results.values()),
        "peak_memory_gib": next(iter(results.values())).peak_memory_gib,
        **measured,
        "versions": versions(),
    }
    records = {name: result.records for name, result in results.items()}
    draw_losses(records, setup.output_dir / "loss.png")
    _write_json(setup.output_dir / "summary.json", whole)
    return whole


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
