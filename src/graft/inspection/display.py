"""An inspection as people read it: in a terminal with colours, in a pipe without."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from graft.download import size_text
from graft.inspection.adapters import AdapterReport, Suggestion
from graft.inspection.coverage import StackHits
from graft.inspection.folding import fold_paths, folded, ranges
from graft.inspection.paths import RegexTest
from graft.inspection.report import Inspection
from graft.inspection.tree import Node

__all__ = ["show"]

_STRIP = 40  # layers in one line of a strip
_INDICES = re.compile(r"((?:\d[\d-]*,){6,})(\d[\d-]*)")


def show(found: Inspection) -> None:
    """Print `found`; nothing is cut short in a pipe."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200
    for part in _parts(found, console):
        console.print(part, soft_wrap=not console.is_terminal)  # a terminal breaks within words


def _parts(found: Inspection, console: Console) -> Iterator[RenderableType]:
    """What is printed, from top to bottom."""
    yield _headline(found)
    yield from map(_warning, found.warnings)
    yield ""
    if found.regex is not None:
        yield from _regex_lines(found.regex)
    else:
        table = _tree_table(found, classes=True)
        wanted = console.measure(table, options=console.options.update(width=1000)).maximum
        yield table if wanted <= console.width else _tree_table(found, classes=False)
    if found.adapter is not None:
        yield ""
        yield from _adapter_parts(found.adapter)
    if found.suggestions:
        yield ""
        yield from _suggestion_parts(found.suggestions)


def _headline(found: Inspection) -> Text:
    dtypes = [dtype for dtype, _ in _dtypes(found.tree).most_common()]
    stored = found.stored
    kind = " and ".join(dtypes) if stored is None else stored.quantization or " and ".join(dtypes)
    line = Text(f"{found.model_class}", style="bold")
    line.append(f": {found.parameters:,} parameters, {kind}, {size_text(found.bytes)}", style="")
    if stored is not None:
        line.append(f" in {stored.files} {'file' if stored.files == 1 else 'files'}")
    elif found.source is not None:
        line.append(", config only")
    return line


def _warning(sentence: str) -> Text:
    return Text(f"! {sentence}", style="yellow")


# --- the tree ---------------------------------------------------------------------------------


def _tree_table(found: Inspection, classes: bool) -> Table:
    """The modules; `classes` are the first to go where there is little room."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("module", no_wrap=True)
    if classes:
        table.add_column("class", no_wrap=True, style="dim")
    table.add_column("weights", overflow="fold")
    table.add_column("parameters", no_wrap=True, justify="right")
    if found.adapter is not None:
        table.add_column("to train", no_wrap=True, justify="right", style="green")
    (usual, _), *_ = _dtypes(found.tree).most_common() or [("", 0)]
    for depth, name, node in _walk(found.tree.children):
        cells = [f"{'  ' * depth}{name}", *([node.kind] if classes else [])]
        cells += [_weights(node, usual), f"{node.parameters:,}"]
        if found.adapter is not None:
            cells.append(f"+{node.added:,}" if node.added else "")
        table.add_row(*cells)
    return table


def _walk(nodes: Sequence[Node], depth: int = 0) -> Iterator[tuple[int, str, Node]]:
    """The nodes that have parameters, with depth and name; a list is named with what is in it."""
    for node in nodes:
        name, count = node.name, node.count
        while not node.weights and len(node.children) == 1:
            (node,) = node.children
            name, count = f"{name}.{node.name}", count * node.count
        if not node.weights and not node.parameters:
            continue
        yield depth, f"{_short(name)}  x{count}" if count > 1 else name, node
        yield from _walk(node.children, depth + 1)


def _weights(node: Node, usual: str) -> str:
    """Shapes, the names of what is not called `weight`, dtypes that are not usual, ties."""
    return "\n".join(
        ("" if weight.name == "weight" else f"{weight.name} ")
        + " x ".join(map(str, weight.shape))
        + ("" if weight.dtype == usual else f" {weight.dtype}")
        + (f" (is {weight.tied_to})" if weight.tied_to else "")
        for weight in node.weights
    )


def _dtypes(node: Node) -> Counter[str]:
    """How many modules have a weight of each dtype."""
    counts = Counter(weight.dtype for weight in node.weights)
    for child in node.children:
        counts += _dtypes(child)
    return Counter({dtype: count * node.count for dtype, count in counts.items()})


# --- an adapter -------------------------------------------------------------------------------


def _adapter_parts(adapter: AdapterReport) -> Iterator[RenderableType]:
    if adapter.patterns:
        yield _hits_table(adapter)
        yield ""
    for title, paths in (
        ("hit:", [path for pattern in adapter.patterns for path in pattern.layers]),
        ("could be adapted, but is not hit:", adapter.not_hit),
    ):
        if paths:
            yield Text(title, style="bold")
            yield from (f"  {_short(path)}" for path in fold_paths(paths))
            yield ""
    if adapter.saved_modules:
        yield f"trained whole: {', '.join(adapter.saved_modules)}"
    if adapter.virtual_tokens:
        yield f"{adapter.virtual_tokens} virtual tokens in each row"
    yield from map(_warning, adapter.warnings)
    yield (
        f"{adapter.method} trains {adapter.trainable_parameters:,} parameters "
        f"({_percent(adapter.share)} of the model's), {size_text(adapter.bytes_on_disk)} on disk, "
        f"with a learning rate of {adapter.learning_rate:g}"
    )


def _hits_table(adapter: AdapterReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("pattern", overflow="fold")
    table.add_column("hits", no_wrap=True, justify="right")
    table.add_column("in", overflow="fold", style="dim")
    table.add_column("layer by layer", overflow="fold")
    for pattern in adapter.patterns:
        name = pattern.pattern
        for hits in pattern.stacks:
            table.add_row(name, str(sum(hits.hits)), hits.stack, _layers(hits))
            name = ""
        outside = len(pattern.layers) - sum(sum(hits.hits) for hits in pattern.stacks)
        if outside:
            table.add_row(name, str(outside), "", "outside the layers")
    return table


def _layers(hits: StackHits) -> Text:
    """The number of targets in each layer, or one number where they are alike."""
    if len(set(hits.hits)) == 1:
        return Text(f"{hits.hits[0]} in each of {len(hits.hits)}", style="green")
    line = Text()
    for index, count in enumerate(hits.hits):
        if index and index % _STRIP == 0:
            line.append("\n")
        digit = "." if not count else str(count) if count < 10 else "+"
        line.append(digit, style="green" if count else "red")
    return line


# --- every method -----------------------------------------------------------------------------


def _suggestion_parts(suggestions: Sequence[Suggestion]) -> Iterator[RenderableType]:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    table.add_column("acts on, by default", overflow="fold")
    for name in ("to train", "share", "on disk", "rate"):
        table.add_column(name, no_wrap=True, justify="right")
    problems: list[str] = []
    for each in suggestions:
        adapter = each.adapter
        if adapter is None:
            problems.append(f"{each.method}: {each.problem}")
            table.add_row(each.method, Text("does not work here", style="yellow"))
            continue
        table.add_row(
            each.method,
            _acts_on(adapter),
            f"{adapter.trainable_parameters:,}",
            _percent(adapter.share),
            size_text(adapter.bytes_on_disk),
            f"{adapter.learning_rate:g}",
        )
        problems += [f"{each.method}: {sentence}" for sentence in _without_adapter(adapter)]
    yield table
    yield from map(_warning, problems)
    commands = [each.command for each in suggestions if each.command]
    if commands:
        yield ""
        yield Text("a run file with one of them, for a file of data:", style="bold")
        yield from (Text(f"  {command}", style="cyan") for command in commands)


def _without_adapter(adapter: AdapterReport) -> Iterator[str]:
    for hits in adapter.stacks:
        if hits.left_out:
            some = f"{len(hits.left_out)} of {len(hits.hits)} layers of {hits.stack}"
            yield f"{some} get no adapter: {_short(ranges(hits.left_out))}"


def _acts_on(adapter: AdapterReport) -> str:
    names = [pattern.pattern for pattern in adapter.patterns]
    if adapter.virtual_tokens:
        names.append(f"{adapter.virtual_tokens} virtual tokens")
    return ", ".join([*names, *adapter.saved_modules])


# --- a regular expression ---------------------------------------------------------------------


def _regex_lines(regex: RegexTest) -> Iterator[RenderableType]:
    count = len(regex.matched) + len(regex.partly) + len(regex.others)
    yield Text.assemble(
        (regex.pattern, "bold"),
        f" matches {len(regex.matched):,} of {count:,} modules, of which a method can adapt "
        f"{len(regex.layers):,}",
    )
    yield from map(_warning, regex.advice)
    for title, paths, style in (
        ("matched", regex.matched, "green"),
        ("in part only", regex.partly, "yellow"),
        ("not matched", regex.others, "dim"),
    ):
        if paths:
            yield ""
            yield Text(title, style="bold")
            for path, number in folded(paths):
                yield Text(f"{number:>7,}  {_short(path)}", style=style)


def _short(path: str) -> str:
    """`path`, a long list of indices in it cut: `{3,7,11,...,47}`."""
    return _INDICES.sub(lambda found: ",".join([*found[1].split(",")[:3], "...", found[2]]), path)


def _percent(share: float) -> str:
    """With two digits that say something, and never an exponent."""
    digits = 2 if share >= 1e-3 or not share else 1 - math.floor(math.log10(100 * share))
    return f"{100 * share:.{digits}f}%"
