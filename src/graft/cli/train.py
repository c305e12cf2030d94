"""`graft train`: the command line of `graft.training`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.errors import ConfigError

if TYPE_CHECKING:
    from graft.planning.plan import Plan
    from graft.training.config import RunConfig

__all__ = ["train"]


def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE | --KEY VALUE]...",
            help="Settings that replace those of the file, such as train.learning_rate=1e-4.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of this run.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Do all but the steps; write no output."),
    ] = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Keep to so much memory, such as 8GiB: adapters share passes while they fit.",
        ),
    ] = None,
    no_plan: Annotated[
        bool, typer.Option("--no-plan", help="Do not plan memory and time before it starts.")
    ] = False,
) -> None:
    """Train one or several adapters as a run file says."""
    from graft.cli import quieten
    from graft.training.runfile import load_run_config, split_overrides

    config = load_run_config(run_file, split_overrides(changes or []))
    quieten()
    from graft.training.setup import check_places

    check_places(config, resume)
    if max_memory is not None:
        config = _within(config, max_memory)
    if dry_run:
        _rehearse(config, resume, planned=not no_plan)
        return
    plan = None if no_plan else _planned(config, typer.echo)
    if plan is not None and not plan.fits:
        raise ConfigError(f"{plan.verdict()} (--no-plan trains all the same.)")
    from graft.training.loop import TrainingError
    from graft.training.report import Terminal
    from graft.training.run import train as run

    forecast = None if plan is None else plan.forecast()
    result = run(config, resume=resume, callbacks=[Terminal()], forecast=forecast)
    if plan is not None and forecast is not None:
        from graft.planning.calibration import remember

        measured = (result.summary[f"measured_{of}"] for of in ("peak_bytes", "step_seconds"))
        remember(plan.device, forecast, *measured)
    for name, summary in result.summary.get("adapters", {"": result.summary}).items():
        if name:
            typer.echo(f"{name}:")
        for line in _closing_lines(summary):
            typer.echo(f"  {line}" if name else line)
    if len(result.results) == 1:
        typer.echo(f"adapter ({result.summary['saved']}): {result.output_dir}")
        return
    typer.echo(
        f"together: {result.summary['tokens']:,} tokens in {result.summary['seconds']:.1f} s; "
        f"adapters: {result.output_dir}/NAME"
    )
    if result.failures:
        raise TrainingError(f"These adapters left the run: {', '.join(result.failures)}.")


def _within(config: RunConfig, size: str) -> RunConfig:
    from dataclasses import replace

    from graft.planning.device import parse_bytes, this_device
    from graft.planning.sharing import within_memory

    device = this_device()
    free = min(parse_bytes(size), device.free_bytes)
    return within_memory(config, replace(device, free_bytes=free))


def _planned(config: RunConfig, tell: Callable[[str], None]) -> Plan | None:
    """The plan of the run, told; None where there can be none."""
    from graft.planning.plan import plan_of_run

    plan = plan_of_run(config, tell=tell)
    for line in [] if plan is None else plan.lines():
        typer.echo(line)
    return plan


def _rehearse(config: RunConfig, resume: bool, planned: bool) -> None:
    from graft.training.rehearsal import dry_run
    from graft.training.runfile import dump_run_config

    def tell(text: str) -> None:
        typer.echo(text, err=True)

    rehearsed = dry_run(config, resume=resume, tell=tell)
    typer.echo(f"# the settings in full\n{dump_run_config(rehearsed.setup.config)}\n# the run")
    for line in [*rehearsed.setup.notes, *rehearsed.lines()]:
        typer.echo(line)
    if planned:
        _planned(config, tell)
    typer.echo("dry run: nothing was trained, and the output folder is as it was.")


def _closing_lines(summary: dict[str, Any]) -> list[str]:
    peak = summary["peak_memory_gib"]
    lines = [
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:.1f} s "
        f"({summary['tokens_per_second']:,.0f} tokens/s)"
        + ("" if peak is None else f", peak memory {peak:.2f} GiB")
    ]
    after = summary["eval_best" if summary["saved"] == "best" else "eval_last"]
    for name, value in after.items():
        lines.append(f"{name}: {summary['eval_before'][name]:.4g} -> {value:.4g}")
    if summary["failure"]:
        lines.append(f"left the run: {summary['failure']}")
    if summary["stopped_early"]:
        lines.append("stopped early: the evaluation loss no longer fell")
    return lines
