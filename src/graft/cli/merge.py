"""`graft merge`: the command line of `graft.merging`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from graft.merging import MergeReport

__all__ = ["merge"]


def merge(
    adapter: Annotated[str, typer.Argument(help="Folder or hub id of an adapter.")],
    out: Annotated[str, typer.Argument(help="The folder to write.")],
    base_model: Annotated[
        str | None, typer.Option(help="The base model, if not where the adapter says.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; that of the base model by default."),
    ] = None,
) -> None:
    """Fold an adapter into its base model and prove the result equal."""
    from graft.cli import quieten
    from graft.errors import ConfigError, did_you_mean

    quieten()
    from graft.merging import DTYPES
    from graft.merging import merge as fold

    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype cannot be {dtype!r}.{did_you_mean(dtype, DTYPES)}")
    report = fold(adapter, out, base_model, None if dtype is None else DTYPES[dtype])
    for line in _lines(report):
        typer.echo(line)
    typer.echo(f"merged: {out} ({report.dtype}, {report.bytes / 2**20:,.1f} MiB)")


def _lines(report: MergeReport) -> list[str]:
    lines = [
        f"on {report.tokens} random tokens, in float32: the adapter moves logits by up to "
        f"{report.effect:.2g}, merging changed them by up to {report.error:.2g}"
    ]
    if report.rounding is not None:
        lines.append(
            f"rounding the weights to {report.dtype} changes logits by up to "
            f"{report.rounding:.2g}; the likeliest choice stays the same at "
            f"{report.agreement:.1%} of the positions"
        )
        if report.rounding > report.effect / 2:
            lines.append(
                "that is more than half of what the adapter does: --dtype float32 keeps it all"
            )
    return lines
