"""A comparison from start to end: each point trained and measured, one after another, on one base.

All that can be wrong with the input is found before the first step: every point's data is read and
its adapter attached once. A row that is done lies in its folder and is not done again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from graft.adapt import PeftModel
from graft.atomic import require_room, write_text
from graft.comparison.full import restored, train_fully
from graft.comparison.grid import Study, load_study
from graft.comparison.machine import MemoryWatch, installed_versions, this_system
from graft.comparison.records import RESULTS_NAME, read_row, write_comparison, write_row
from graft.comparison.rehearsal import Ready, rehearse
from graft.comparison.results import HIGHER_IS_BETTER, Base, Comparison, Measured, Row
from graft.comparison.spread import group_rows
from graft.comparison.yardstick import Reading
from graft.data.prepare import PreparedData
from graft.errors import ConfigError
from graft.training.config import RunConfig
from graft.training.loop import FitResult, TrainingError
from graft.training.report import Callback, Record, Start
from graft.training.run import train
from graft.training.state import checkpoints

__all__ = ["compare"]

_GIB = 2**30
_SHOWN = ("results.csv", "report.html")  # what is made of the results, beside plots
_NOT_MEASURED = ("seeds", "full", "full_learning_rate", "metric")  # of `compare`
# What may differ where a row that is done is taken as it is.
_FREE = ("output_dir", "overwrite_output_dir", "save_total_limit", "use_cache")


def compare(
    run: str | Path | Study,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Comparison:
    """Train and measure every point of a run file, and write `results.json` into its `output_dir`.

    Args:
        run: The run file, with `grid:` and `compare:` where wanted; or what `load_study` made of
            it.
        overrides: `key=value`, as on the command line.
        resume: Keep what is done already and go on.
        callbacks: Who is told: notes about the comparison, and the steps of each run.

    Raises:
        GraftError: Something in the run file, the data or the model cannot be used; nothing was
            trained then.
    """
    study = run if isinstance(run, Study) else load_study(run, overrides)
    return _Course(study, resume, callbacks).run()


class _Within(Callback):
    """Hands on what a run tells, but for its notes: they are the same for every point."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def on_start(self, start: Start) -> None:
        for callback in self.callbacks:
            callback.on_start(start)

    def on_step(self, step: int) -> None:
        for callback in self.callbacks:
            callback.on_step(step)

    def on_log(self, record: Record) -> None:
        for callback in self.callbacks:
            callback.on_log(record)

    def on_end(self) -> None:
        for callback in self.callbacks:
            callback.on_end()


class _Course:
    """A comparison under way."""

    def __init__(self, study: Study, resume: bool, callbacks: Sequence[Callback]) -> None:
        self.study, self.resume, self.callbacks = study, resume, callbacks
        self.root = study.output_dir
        self.device = torch.accelerator.current_accelerator() or torch.device("cpu")
        self.rows: list[Row] = []

    def note(self, text: str) -> None:
        for callback in self.callbacks:
            callback.note(text)

    def run(self) -> Comparison:
        self._check_place()
        self.rehearsed = rehearse(self.study, self.note)
        self.yardstick = self.rehearsed.yardstick
        self._measure_base()
        if not self.resume:
            _clear(self.root)
        write_text(self.root / "run.yaml", self.study.dump())
        runs = [(point, seed) for point in self.rehearsed.points for seed in self.study.seeds]
        found = self._found()
        for number, (point, seed) in enumerate(runs, start=1):
            try:
                row = self._row(point, seed, f"[{number}/{len(runs)}]")
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"stopped in run {number} of {len(runs)}; --resume keeps what is done."
                ) from None
            self.rows.append(row)
            found = self._found()
            write_comparison(found, self.root)
        return found

    # --- before the first step --------------------------------------------------------------

    def _check_place(self) -> None:
        require_room(self.root)
        replaced = self.study.run.train.overwrite_output_dir
        if self.resume or replaced or not self.root.exists() or not any(self.root.iterdir()):
            return
        raise ConfigError(
            f"{self.root} is not empty. Go on with the comparison in it (--resume), replace it "
            "(train.overwrite_output_dir=true), or give another train.output_dir."
        )

    def _measure_base(self) -> None:
        """The base model by itself."""
        model = PeftModel(self.rehearsed.base.to(self.device))
        try:
            self.reading = self.yardstick.read(model)
        except FloatingPointError as error:
            raise ConfigError(f"The base model cannot be compared with: {error}.") from None
        self.metric = self.yardstick.metric(self.reading.quality)
        self.found = Base(
            name=self.study.run.base_model,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            dtype=str(model.base_model.dtype).removeprefix("torch."),
            device=str(self.device),
            quality=self.reading.quality,
            text_loss=self.reading.text_loss,
            inference=self.reading.inference,
        )
        model.unload()

    # --- a row --------------------------------------------------------------------------------

    def _row(self, ready: Ready, seed: int, number: str) -> Row:
        config = ready.with_seed(seed)
        folder = Path(str(config.train.output_dir))
        settings = {
            **config.model_dump(mode="json"),
            "compare": self.study.settings.model_dump(mode="json", exclude=set(_NOT_MEASURED)),
        }
        name = f"{ready.planned.point.name}, seed {seed}"
        done = read_row(folder) if self.resume else None
        if done is not None:
            _check_same(done, settings, ready.data_sha256, folder)
            self.note(f"{number} {name}: done already")
            return done
        self.note(f"{number} {name}")
        start = time.perf_counter()
        measured, adapter, error = None, None, ""
        try:
            if ready.data is not None:
                measured = self._fully(config, ready.data)
            else:
                measured = self._adapted(config, folder)
                adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        except (TrainingError, FloatingPointError) as failure:
            error = str(failure)
            self.note(f"failed: {error}")
        if measured is not None:
            measured = replace(measured, total_seconds=time.perf_counter() - start)
            self.note(_in_short(measured, self.metric))
        row = Row(
            point=ready.planned.point.name,
            seed=seed,
            folder=str(folder.relative_to(self.root)),
            config=settings,
            peft_config=adapter,
            data_sha256=ready.data_sha256,
            created_at=_now(),
            measured=measured,
            error=error,
        )
        write_row(row, folder)
        return row

    def _adapted(self, config: RunConfig, folder: Path) -> Measured:
        watch = MemoryWatch(self.device)
        begun = self.resume and bool(checkpoints(folder))
        told = [watch, _Within(self.callbacks)]
        result = train(config, resume=begun, callbacks=told, base=self.rehearsed.base)
        (fitted,) = result.results.values()
        try:
            reading = self.yardstick.read(result.model)
            parameters = result.model.get_nb_trainable_parameters()
        finally:
            result.model.unload()
        size = (folder / "adapter_model.safetensors").stat().st_size
        return self._measured(reading, watch, fitted, parameters, size)

    def _fully(self, config: RunConfig, data: PreparedData) -> Measured:
        watch = MemoryWatch(self.device)
        with restored(self.rehearsed.base) as model:
            parameters = model.get_nb_trainable_parameters()
            size = sum(parameter.nbytes for parameter in model.parameters())
            told = [watch, _Within(self.callbacks)]
            fitted = train_fully(model, config, data, self.yardstick.collate, told)
            reading = self.yardstick.read(model)
        return self._measured(reading, watch, fitted, parameters, size)

    def _measured(
        self,
        reading: Reading,
        watch: MemoryWatch,
        fitted: FitResult,
        parameters: tuple[int, int],
        size: int,
    ) -> Measured:
        """All that is known of a run, whose `parameters` are trainable and all, `size` in bytes."""
        before, progress, peak = self.reading.text_loss, fitted.progress, fitted.peak_memory_gib
        forgetting = None
        if reading.text_loss is not None and before is not None:
            forgetting = reading.text_loss - before
        return Measured(
            quality=reading.quality,
            forgetting=forgetting,
            trainable_parameters=parameters[0],
            all_parameters=parameters[1],
            adapter_bytes=size,
            peak_bytes=None if peak is None else round(peak * _GIB),
            average_bytes=watch.average,
            high_bytes=watch.high,
            steps=progress.step,
            rows=progress.rows,
            tokens=progress.tokens,
            seconds=progress.seconds,
            tokens_per_second=progress.tokens_per_second,
            total_seconds=0.0,  # known when it is over
            inference=reading.inference,
            samples=self.yardstick.samples(self.reading, reading),
            log=tuple(fitted.records),
        )

    def _found(self) -> Comparison:
        """What is known so far."""
        points = [planned.point for planned in self.study.points]
        higher = self.metric in HIGHER_IS_BETTER
        data = self.rehearsed.data
        return Comparison(
            task_type=str(self.study.run.task_type),
            metric=self.metric,
            base=self.found,
            train_rows=len(data.train),
            eval_rows=len(data.eval or ()),
            data_sha256=data.sha256,
            text=self.study.settings.text,
            seeds=self.study.seeds,
            planned=len(points) * len(self.study.seeds),
            rows=tuple(self.rows),
            groups=group_rows(points, self.rows, self.metric, higher),
            versions=installed_versions(),
            system=this_system(),
            created_at=_now(),
        )


def _check_same(row: Row, settings: dict[str, Any], hashes: dict[str, str], folder: Path) -> None:
    """Raise a ConfigError unless `row` is what would be trained now."""
    before, now = (
        _flat({**row.config, "sha256": row.data_sha256}),
        _flat({**settings, "sha256": hashes}),
    )
    names = sorted(
        name
        for name in before.keys() | now.keys()
        if name.rpartition(".")[2] not in _FREE and before.get(name) != now.get(name)
    )
    if names:
        name = names[0]
        raise ConfigError(
            f"{folder} was trained with other settings: {name} was {before.get(name)!r} and is "
            f"{now.get(name)!r}. Replace the comparison (train.overwrite_output_dir=true) or give "
            "another train.output_dir."
        )


def _flat(settings: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Settings by dotted path."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{start}{name}"
        found |= _flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found


def _clear(root: Path) -> None:
    """Remove a former comparison; files that are not a comparison's stay."""
    if not root.is_dir():
        return
    for folder in root.iterdir():
        if any(folder.glob("seed-*/result.json")) or any(folder.glob("seed-*/run.yaml")):
            shutil.rmtree(folder)
    for name in (RESULTS_NAME, "run.yaml", *_SHOWN):
        (root / name).unlink(missing_ok=True)


def _in_short(measured: Measured, metric: str) -> str:
    rate = measured.tokens_per_second
    return (
        f"{metric} {measured.quality[metric]:.4g}, {measured.steps:,} steps in "
        f"{measured.seconds:.1f} s ({rate:,.0f} tokens/s)"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
