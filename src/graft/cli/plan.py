"""`graft plan`: the command line of `graft.planning`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft.atomic import require_place
from graft.errors import ConfigError

if TYPE_CHECKING:
    from graft.planning.plan import Plan

__all__ = ["plan"]


def plan(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN.yaml | MODEL", help="A run file; or the folder or hub id of a base model."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE | --KEY VALUE]...",
            help="Settings of the run file; with a model, of the methods (r=16) or of a run "
            "(gradient_checkpointing=true).",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="lora, ia3, bitfit, prompt_tuning, p_tuning, prefix_tuning, full, several with "
            "commas between them, or all; by default the run's own, with a model all."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, 8-bit or 4-bit; by default as the run or the device says."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows in a forward pass; as the run says, or 8.")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens in each row; as the data of the run has them, or 512."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What there is to fit, such as 24GiB; as the device has.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="A device that is not here, such as A100-40GB.")
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(help="In place of a model: a number of parameters, such as 1.3B."),
    ] = None,
    task_type: Annotated[
        str | None, typer.Option(help="CAUSAL_LM, SEQ_CLS, ...; as the run or the model says.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw the memory of the step over its course."),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Write the run file with what makes it fit.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="RUN.yaml", help="Where --fit writes: RUN.fit.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Trace every layer, and not a few of each kind.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, bytes as integers.")] = False,
) -> None:
    """Say what a run will cost, in bytes and seconds, before it starts.

    The config of the model is enough, no weights are needed.
    """
    if parameters is not None:
        unused = {
            "--batch-size": batch_size,
            "--length": length,
            "--memory": memory,
            "--device": device,
            "--task-type": task_type,
            "--plot": plot,
            "--fit": fit or None,
            "--output": output,
            "--exact": exact or None,
        }
        _refuse_beside_parameters([name for name, given in unused.items() if given is not None])
        _tell_arithmetic(parameters, source, method, precision, as_json)
        return
    if source is None:
        raise ConfigError("Name a run file or a model, or give --parameters 1.3B.")
    from graft.cli import quieten
    from graft.planning.plan import is_run_file
    from graft.planning.plan import plan as make_plan
    from graft.training.runfile import refuse_written, split_overrides

    if output is not None and not fit:
        raise ConfigError("--output says where --fit writes: add --fit.")
    if plot is not None:
        require_place(plot)
    target = _target(source, output) if fit else None
    if target is not None:
        if not is_run_file(source):
            raise ConfigError(
                "--fit changes a run file, and a model is none: `graft init MODEL DATA` makes one."
            )
        refuse_written(target, force)  # before the work
    overrides = split_overrides(changes or [])
    if batch_size is not None and is_run_file(source):
        overrides.append(f"train.per_device_train_batch_size={batch_size}")
    quieten()
    found = make_plan(
        source,
        overrides,
        method=method,
        precision=precision,
        batch_size=None if is_run_file(source) else batch_size,
        length=length,
        task_type=task_type,
        memory=memory,
        device=device,
        exact=exact,
        tell=lambda text: typer.echo(text, err=True),
    )
    _show(found, as_json)
    if plot is not None:
        _draw(found, plot)
    if target is not None:
        _write_fitting(found, Path(source), overrides, target, force)


def _refuse_beside_parameters(flags: list[str]) -> None:
    if flags:
        raise ConfigError(
            f"A number of parameters says nothing of what {' and '.join(flags)} would change: "
            "name a model in place of --parameters."
        )


def _tell_arithmetic(
    parameters: str, source: str | None, method: str | None, precision: str | None, as_json: bool
) -> None:
    from graft.planning.formulas import find_base, full_fine_tuning, parse_count
    from graft.planning.record import arithmetic_record
    from graft.planning.tables import show_arithmetic

    if source is not None:
        raise ConfigError(f"Give a model ({source}) or --parameters, not both.")
    if (method or "full").lower() != "full":
        raise ConfigError(
            f"What {method} costs follows from the layers of a model: name one in place of "
            "--parameters, which is enough for --method full alone."
        )
    found = full_fine_tuning(parse_count(parameters), find_base(precision or "fp32"))
    if as_json:
        typer.echo(json.dumps(arithmetic_record(found), indent=2))
    else:
        show_arithmetic(found)


def _show(found: Plan, as_json: bool) -> None:
    from graft.planning.record import plan_record
    from graft.planning.tables import show_plan

    if as_json:
        typer.echo(json.dumps(plan_record(found), indent=2, ensure_ascii=False))
    else:
        show_plan(found)


def _draw(found: Plan, path: Path) -> None:
    from graft.planning.timeline import draw_timeline

    draw_timeline(found, path)
    typer.echo(f"wrote {path}", err=True)


def _write_fitting(
    found: Plan, source: Path, overrides: list[str], target: Path, force: bool
) -> None:
    from graft.planning.fitting import fitting_change, fitting_text
    from graft.training.runfile import write_run_file

    change = fitting_change(found)
    write_run_file(target, fitting_text(source, overrides, change), force)
    told = "the run fits as it is" if change is None else change.words
    typer.echo(f"wrote {target}: {told}", err=True)


def _target(source: str, output: Path | None) -> Path:
    path = Path(source)
    return output or path.with_name(f"{path.stem}.fit{path.suffix}")
