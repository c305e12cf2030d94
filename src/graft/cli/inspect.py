"""`graft inspect`: the command line of `graft.inspection`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from graft.config import PeftConfig

__all__ = ["inspect"]


def inspect(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a base model.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE | --KEY VALUE]...",
            help="Settings of the method, such as r=16, num_virtual_tokens=20, "
            "exclude_modules=lm_head or layers_to_transform=0,1.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="lora, ia3, bitfit, prompt_tuning, p_tuning, prefix_tuning.")
    ] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(help="all-linear, names with commas between them, or a regular expression."),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option(help="Show which paths of modules this regular expression matches."),
    ] = None,
    task_type: Annotated[
        str | None, typer.Option(help="CAUSAL_LM, SEQ_CLS, ...; as the model says by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a model is made of, and what each method would train in it.

    With a method, or with targets, it shows which layers these hit and what that costs. The config
    is enough; where weights lie beside it, their headers are read too, and must fit it.
    """
    from graft.cli import quieten

    given = list(settings or [])
    if target_modules is not None:
        given.append(f"target_modules={target_modules}")
    config = _config(method, task_type, given)
    quieten()
    from graft.inspection import inspect as examine

    found = examine(model, config, task_type, regex=regex)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        from graft.inspection.display import show

        show(found)


def _config(method: str | None, task_type: str | None, settings: list[str]) -> PeftConfig | None:
    """The config that the command line describes; LoRA's where it names no method."""
    from graft.inspection.adapters import usual_settings
    from graft.methods import make_config
    from graft.training.adapters import setting_value
    from graft.training.runfile import split_overrides

    if method is None and not settings:
        return None
    values: dict[str, Any] = {}
    for setting in split_overrides(settings):
        name, _, text = setting.partition("=")
        values[name] = setting_value(method or "lora", name, text)
    method = method or "lora"
    return make_config(method, **{"task_type": task_type, **usual_settings(method), **values})
