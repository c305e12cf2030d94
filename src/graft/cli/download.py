"""`graft download`: the command line of `graft.download`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graft.download import HubAddress, Listing, Plan, RepoFile

__all__ = ["download"]

_SHOWN = 40  # files


def download(
    source: Annotated[
        str,
        typer.Argument(help="hf:ORG/NAME on Hugging Face, ms:ORG/NAME on ModelScope, or ORG/NAME."),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    cache_dir: Annotated[
        str | None, typer.Option(help="Where to keep it, instead of the hub's own cache.")
    ] = None,
    data: Annotated[bool, typer.Option("--data", help="A data set, not a model.")] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Files to fetch too, such as 'pytorch_model*'; of a data set, these alone.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Fetch all but code.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Fetch .py files too; graft runs none.")
    ] = False,
) -> None:
    """Fetch a model, an adapter or a data set from a hub; called again, only what is missing.

    Of a model that is the config, the tokenizer and the safetensors. Proxies and mirrors are those
    of the hubs' clients: HF_ENDPOINT, MODELSCOPE_ENDPOINT, HF_HUB_OFFLINE, HTTPS_PROXY.
    USE_MODELSCOPE_HUB=1 looks for ORG/NAME on ModelScope.
    """
    from huggingface_hub.utils import logging

    from graft.download import hub_address, make_plan, plan_dataset

    logging.set_verbosity_error()  # what goes wrong graft says itself

    address = hub_address(source)
    if data and not everything:
        plan = plan_dataset(address, revision, cache_dir, include)
    else:
        plan = make_plan(
            address,
            lambda listing: _wanted(listing, include or [], everything, trust_remote_code),
            "dataset" if data else "model",
            revision,
            cache_dir,
        )
    if not trust_remote_code:
        _refuse_code(plan.listing, include or [])
        plan = plan.changed([file for file in plan.files if not _is_code(file)])
    _tell(address, plan)
    if not data:
        _tell_of_code(address, plan, trust_remote_code)
        _require_weights(address, plan)
    try:
        folder = plan.fetch()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; what has arrived is kept, run the same to go on."
        ) from None
    typer.echo(f"{'train' if data else 'base_model'}: {folder}")


def _wanted(
    listing: Listing, include: Sequence[str], everything: bool, code: bool
) -> Sequence[RepoFile]:
    """The usual files and those that were asked for, and all code where it is trusted."""
    from graft.download import default_files, matching, require_matches

    require_matches(listing, include)
    patterns = ["*"] if everything else [*include, *(["*.py"] if code else [])]
    more = {*default_files(listing), *matching(listing, patterns)}
    return [file for file in listing.files if file in more]


def _is_code(file: RepoFile) -> bool:
    return file.path.endswith(".py")


def _refuse_code(listing: Listing, include: Sequence[str]) -> None:
    """Raise a ConfigError where a pattern asks for nothing but code."""
    from graft.download import matching
    from graft.errors import ConfigError

    for pattern in include:
        found = matching(listing, [pattern])
        if all(map(_is_code, found)):
            raise ConfigError(
                f"{found[0].path} is code, which stays on the hub: fetch it with "
                "--trust-remote-code; graft runs none."
            )


def _tell(address: HubAddress, plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from graft.download import size_text

    console = Console(highlight=False, markup=False, soft_wrap=True)
    listing, missing = plan.listing, set(plan.missing)
    commit = f" ({listing.commit[:12]})" if listing.commit else ""
    console.print(f"{address} at {listing.revision}{commit}, from {plan.hub.endpoint}")
    table = Table(box=None, show_header=False, pad_edge=False)
    for file in plan.files[:_SHOWN]:
        state = "" if file in missing else "is here"
        table.add_row("", file.path, size_text(file.size), state)
    table.columns[2].justify = "right"
    console.print(table)
    if len(plan.files) > _SHOWN:
        console.print(f"  and {len(plan.files) - _SHOWN:,} more")
    left = [file for file in listing.files if file not in set(plan.files)]
    if left:
        names = ", ".join(file.path for file in left[:3])
        console.print(
            f"not wanted: {names}{', ...' if len(left) > 3 else ''} "
            f"({_files(len(left))}, {size_text(sum(f.size for f in left))}; --include, --all)"
        )
    if not missing:
        console.print("nothing to fetch")
        return
    console.print(
        f"to fetch: {_files(len(missing))}, {size_text(plan.bytes_missing)}, into {plan.hub.cache} "
        f"({size_text(plan.bytes_free)} free)"
    )


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _tell_of_code(address: HubAddress, plan: Plan, trusted: bool) -> None:
    """Say before the weights come that a model brings code, which graft never runs."""
    from graft.download import matching, read_object

    config = matching(plan.listing, ["config.json"])
    if not config:
        return
    folder = plan.changed(config).fetch()
    if "auto_map" not in read_object(folder / "config.json"):
        return
    fetched = "it is fetched for you to read" if trusted else "it stays on the hub"
    typer.echo(
        f"{address} brings code of its own (auto_map in its config.json): {fetched}; graft does "
        "not run it, and takes transformers' class for the model where there is one"
    )


def _require_weights(address: HubAddress, plan: Plan) -> None:
    """A model without weights is of no use, unless one has said what one wants of it."""
    from graft.download import default_files, is_adapter, lack_of_safetensors
    from graft.errors import CheckpointError

    lack = lack_of_safetensors(plan.listing, address)
    if (
        lack
        and not is_adapter(plan.listing)
        and len(plan.files) == len(default_files(plan.listing))
    ):
        raise CheckpointError(lack)
