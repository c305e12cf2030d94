"""`graft doctor`: the command line of `graft.environment`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from graft.environment import Device, Environment, Folder, Hub, Package, Torch

__all__ = ["doctor"]

_COLOURS = {"error": "red", "warning": "yellow", "hint": "cyan"}
_HUBS = {"hf": "Hugging Face", "ms": "ModelScope"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Look at what graft runs on, and say how to mend what is wrong with it.

    Ends with 1 where graft cannot work.
    """
    import json
    from dataclasses import asdict

    from graft.environment import examine

    found = examine()
    if as_json:
        told = asdict(found) | {"works": found.works}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _print(found)
    if not found.works:
        raise typer.Exit(1)


def _print(found: Environment) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, soft_wrap=True)
    width = console.width if console.is_terminal else 200  # lines are not broken in a pipe
    for title, lines in _sections(found):
        console.print(title, style="bold")
        names = max(18, *(len(name) for name, _ in lines))
        indent = " " * (names + 4)
        wrapper = TextWrapper(
            width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
        )
        for name, value in lines:
            wrapper.initial_indent = f"  {name:<{names}}  "
            console.print(wrapper.fill(value))
        console.print()
    if not found.problems:
        console.print("Nothing is wrong.")
    for problem in found.problems:
        label = Text(f"{problem.severity}: ", style=_COLOURS[problem.severity])
        console.print(label.append(problem.what, style="default"))
        console.print(f"  {problem.cure}", style="bold")


def _sections(found: Environment) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Title and lines, each a name and what is said of it."""
    python, machine = found.python, found.machine
    usable = "" if machine.usable_cores == machine.cores else f" ({machine.usable_cores} usable)"
    yield (
        f"graft {found.graft or '(not installed)'}",
        [
            ("Python", f"{python.version}, {python.executable}"),
            ("environment", python.virtual_environment or "none: packages of the whole system"),
            ("platform", python.platform),
            ("processor", f"{machine.cpu}, {machine.cores} cores{usable}"),
            ("memory", _of(machine.free_memory_gib, machine.memory_gib)),
        ],
    )
    yield "torch", list(_torch(found.torch))
    yield "packages", list(_packages(found.packages))
    yield "folders", [_folder(folder) for folder in found.folders]
    given = {name: v or "empty" for name, v in found.settings.items() if v is not None}
    yield "environment variables", list(given.items()) or [("none", "of those that matter is set")]
    hubs = [_hub(hub) for hub in found.hubs]
    if found.plain_names is not None:
        hubs.append(("ORG/NAME alone", f"is a repository on {_HUBS[found.plain_names]}"))
    yield "hubs", hubs


def _torch(torch: Torch) -> Iterator[tuple[str, str]]:
    if torch.version is None:
        yield "version", "cannot be imported"
    else:
        threads = f"{torch.threads} thread{'s' if torch.threads > 1 else ''}"
        yield "version", f"{torch.version}, built for {torch.build}, {threads}"
    yield from (("GPU", gpu) for gpu in torch.gpus)
    for device in torch.devices:
        yield from _device(device)


def _device(device: Device) -> Iterator[tuple[str, str]]:
    capability = f", {device.capability}" if device.capability else ""
    yield device.name, f"{device.model}{capability}, {_of(device.free_gib, device.total_gib)}"
    for product in device.products:
        rate = "" if product.gflops is None else f"{product.gflops:,.0f} GFLOP/s"
        verdict = "" if product.verdict == "reference" else product.verdict
        yield f"  {product.dtype}", ", ".join(filter(None, (rate, verdict)))


def _packages(packages: Sequence[Package]) -> Iterator[tuple[str, str]]:
    absent: dict[str | None, list[str]] = {}
    for package in packages:
        if package.installed is None:
            absent.setdefault(package.extra, []).append(package.name)
        else:
            tested = f"tested {package.tested}" if package.tested else "not in the tested set"
            yield package.name, f"{package.installed}, {tested}"
    for extra, names in absent.items():
        extras = f", of graft-peft[{extra}]" if extra else ""
        yield "not installed", ", ".join(names) + extras


def _folder(folder: Folder) -> tuple[str, str]:
    used = "" if folder.used_gib is None else f", {folder.used_gib:.1f} GiB in it"
    return folder.purpose, f"{folder.path}{used}, {_of(folder.free_gib, folder.total_gib)}"


def _hub(hub: Hub) -> tuple[str, str]:
    if hub.reachable is None:
        return hub.name, f"not asked: {hub.why}"
    if not hub.reachable:
        return hub.name, f"{hub.endpoint} does not answer: {hub.why}"
    return hub.name, f"{hub.endpoint} answers in {hub.seconds:.2f} s"


def _of(free: float, total: float) -> str:
    return f"{free:.1f} of {total:.1f} GiB free"
