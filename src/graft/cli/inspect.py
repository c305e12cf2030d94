"""`graft inspect`: the command line of `graft.inspection`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from graft.config import PeftConfig
    from graft.inspection import AdapterReport, Inspection, Node

__all__ = ["inspect"]


def inspect(
    model: Annotated[
        str, typer.Argument(help="Folder or hub id of a base model; only its config is read.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE | --KEY VALUE]...",
            help="Settings of the method, such as r=16 or num_virtual_tokens=20.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="lora, ia3, bitfit, prompt_tuning, p_tuning, prefix_tuning.")
    ] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(help="all-linear, names with commas between them, or a regular expression."),
    ] = None,
    task_type: Annotated[
        str | None, typer.Option(help="CAUSAL_LM, SEQ_CLS, ...; as the model says by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a model is made of, what a target pattern hits, and what that costs."""
    from graft.cli import quieten

    config = _config(method, target_modules, task_type, settings or [])
    quieten()
    from graft.inspection import inspect as examine

    found = examine(model, config, task_type)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        _print(found)


def _config(
    method: str | None, target_modules: str | None, task_type: str | None, settings: list[str]
) -> PeftConfig | None:
    import yaml

    from graft.methods import make_config
    from graft.training.runfile import split_overrides

    values: dict[str, Any] = {}
    for setting in split_overrides(settings):
        name, _, value = setting.partition("=")
        values[name] = yaml.safe_load(value)
    if target_modules is not None:
        names = re.fullmatch(r"[\w.,]+", target_modules)
        values["target_modules"] = target_modules.split(",") if names else target_modules
    if method is None and not values:
        return None
    return make_config(method or "lora", task_type=task_type, **values)


def _print(found: Inspection) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # nothing is cut short in a pipe
    console.print(
        f"{found.model_class}: {found.parameters:,} parameters, "
        f"{'/'.join(sorted(_dtypes(found.tree)))}, {_size(found.bytes)}\n"
    )
    console.print(_table(found))
    if found.adapter is not None:
        console.print()
        for line in _lines(found.adapter, found.parameters):
            console.print(line)


def _dtypes(node: Node) -> set[str]:
    return {weight.dtype for weight in node.weights}.union(*map(_dtypes, node.children))


def _table(found: Inspection) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("module", no_wrap=True)
    table.add_column("class", overflow="ellipsis", style="dim")  # the one to be cut short
    table.add_column("weights", no_wrap=True)
    table.add_column("parameters", no_wrap=True, justify="right")
    if found.adapter is not None:
        table.add_column("to train", no_wrap=True, justify="right", style="green")
    for depth, name, node in _walk(found.tree.children):
        cells = [f"{'  ' * depth}{name}", node.kind, _weights(node), f"{node.parameters:,}"]
        if found.adapter is not None:
            cells.append(f"+{node.added:,}" if node.added else "")
        table.add_row(*cells)
    return table


def _walk(nodes: Sequence[Node], depth: int = 0) -> Iterator[tuple[int, str, Node]]:
    """The nodes that have parameters, with depth and name; a list is named with what is in it."""
    for node in nodes:
        name = node.name
        while not node.weights and len(node.children) == 1:
            (node,) = node.children
            name = f"{name}.{node.name}"
        if not node.weights and not node.parameters:
            continue
        yield depth, f"{name}  x{node.count}" if node.count > 1 else name, node
        yield from _walk(node.children, depth + 1)


def _weights(node: Node) -> str:
    """Shapes, the names of what is not called `weight`, and what is tied."""
    return ", ".join(
        ("" if weight.name == "weight" else f"{weight.name} ")
        + " x ".join(map(str, weight.shape))
        + (f" (is {weight.tied_to})" if weight.tied_to else "")
        for weight in node.weights
    )


def _lines(adapter: AdapterReport, parameters: int) -> Iterator[str]:
    from graft.inspection import fold_paths

    for pattern in adapter.patterns:
        yield f"{pattern.pattern} hits {len(pattern.layers)} layers:"
        yield from (f"  {path}" for path in fold_paths(pattern.layers))
    if adapter.not_hit:
        yield "could be adapted, but is not hit:"
        yield from (f"  {path}" for path in fold_paths(adapter.not_hit))
    if adapter.saved_modules:
        yield f"trained whole: {', '.join(adapter.saved_modules)}"
    if adapter.virtual_tokens:
        yield f"{adapter.virtual_tokens} virtual tokens in each row"
    yield (
        f"{adapter.method} trains {adapter.trainable_parameters:,} parameters "
        f"({adapter.trainable_parameters / parameters:.3%} of the model's), "
        f"{_size(adapter.bytes_on_disk)} on disk"
    )


def _size(count: int) -> str:
    """Bytes in the unit that suits them."""
    unit, name = next(
        (u for u in ((2**30, "GiB"), (2**20, "MiB")) if count >= u[0]), (2**10, "KiB")
    )
    return f"{count / unit:.2f} {name}"
