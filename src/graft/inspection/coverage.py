"""Which layers of a model each target pattern hits, and which of a stack it leaves out.

A stack is a list of layers, such as `model.layers`. In hybrid models a name is often missing from
some of them; nothing fails then, and a part of the model learns nothing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from graft.adapt.adapter import Adapter
from graft.adapt.patterns import unknown_names
from graft.config import PeftConfig
from graft.inspection.folding import fold_paths, ranges
from graft.methods.base import matches_suffix
from graft.methods.targeting import TargetedConfig

__all__ = ["PatternHits", "StackHits", "coverage_warnings", "pattern_hits", "stack_hits"]

_NAME = r"[\w.{},-]+"
_IN_LAYER = re.compile(r"(?:(?P<stack>.*?)\.)?(?P<index>\d+)\.")


@dataclass(frozen=True)
class StackHits:
    """How many targets lie in each layer of a stack.

    Attributes:
        stack: Path of the list of layers, such as `model.layers`.
        hits: Targets in its first layer, in its second, ...
    """

    stack: str
    hits: tuple[int, ...]

    @property
    def left_out(self) -> tuple[int, ...]:
        """Indices of the layers without a target."""
        return tuple(index for index, count in enumerate(self.hits) if not count)


@dataclass(frozen=True)
class PatternHits:
    """A target pattern and the layers that it hits.

    Attributes:
        pattern: A name, or a regular expression.
        layers: Paths of the target layers that it matches.
        stacks: The same by stack, for each in which it matches any.
    """

    pattern: str
    layers: tuple[str, ...]
    stacks: tuple[StackHits, ...]


def stack_hits(model: nn.Module, paths: Iterable[str]) -> tuple[StackHits, ...]:
    """`paths` counted by the layer that they lie in."""
    counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for path in paths:
        place = _IN_LAYER.match(path)
        if place is not None:
            counts[place["stack"] or ""][int(place["index"])] += 1
    lengths = {stack: len(dict(model.get_submodule(stack).named_children())) for stack in counts}
    return tuple(
        StackHits(stack, tuple(count[index] for index in range(lengths[stack])))
        for stack, count in counts.items()
    )


def pattern_hits(model: nn.Module, config: PeftConfig, adapter: Adapter) -> tuple[PatternHits, ...]:
    """What each target pattern of `config` hits; chosen by the structure, where it names none."""
    if not isinstance(config, TargetedConfig) or not isinstance(adapter.config, TargetedConfig):
        return ()
    targets = {path: adapter.views[path].target_path for path in adapter.layers}

    def hits(pattern: str, layers: Iterable[str]) -> PatternHits:
        found = tuple(layers)
        return PatternHits(pattern, found, stack_hits(model, found))

    wanted = config.target_modules
    if isinstance(wanted, str) and wanted != "all-linear":
        return (hits(wanted, (p for p, t in targets.items() if re.fullmatch(wanted, t))),)
    # Left open: the resolved config says what was chosen, by layer where it had to.
    names = wanted if isinstance(wanted, list) else list(adapter.config.target_modules or [])
    names = [*names, *(getattr(adapter.config, "target_parameters", None) or [])]
    alike = {name: [name] for name in names} if isinstance(wanted, list) else _alike(names)
    return tuple(
        hits(shown, (p for p, t in targets.items() if matches_suffix(t, own)))
        for shown, own in alike.items()
    )


def _alike(names: Iterable[str]) -> dict[str, list[str]]:
    """Names that differ in an index only, by what they are together: `{0-11}.output.dense`."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        found[re.sub(r"\d+(?=\.)", "#", name)].append(name)
    return {" ".join(fold_paths(own)): own for own in found.values()}


def coverage_warnings(
    model: nn.Module, patterns: Sequence[PatternHits], targets: Iterable[str]
) -> list[str]:
    """A sentence on each stack of which patterns hit some layers only, or some layers less.

    Args:
        model: The base model.
        patterns: What each pattern hits.
        targets: Paths of all layers that get an adapter.
    """
    paths = [path for path, _ in model.named_modules()]
    paths += [path for path, _ in model.named_parameters()]
    bare = {each.stack: each.left_out for each in stack_hits(model, targets)}
    groups: defaultdict[tuple[str, int, tuple[int, ...]], list[str]] = defaultdict(list)
    sentences: list[str] = []
    for pattern in patterns:
        for each in pattern.stacks:
            if each.left_out:
                groups[each.stack, len(each.hits), each.left_out].append(pattern.pattern)
            elif len(set(each.hits)) > 1:
                sentences.append(_uneven(pattern.pattern, each))
        if not re.fullmatch(_NAME, pattern.pattern):
            sentences += unknown_names(re.compile(pattern.pattern), paths)
    for (stack, count, others), names in groups.items():
        ends = [] if _are_there(names, stack, others, paths) else ["have no such module"]
        ends += ["get no adapter"] if others == bare[stack] else []
        sentences.append(_partial(names, stack, count, others, ends))
    for stack, others in bare.items():
        if others and not any(key[::2] == (stack, others) for key in groups):
            sentences.append(f"Layers {_few(others)} of {_called(stack)} get no adapter.")
    return sentences


def _uneven(pattern: str, hits: StackHits) -> str:
    (most, _), *_ = Counter(hits.hits).most_common()
    fewer = [index for index, count in enumerate(hits.hits) if count != most]
    return (
        f"{pattern} hits {most} modules in most layers of {_called(hits.stack)}, but another "
        f"number in {_few(fewer)}."
    )


def _are_there(
    names: Sequence[str], stack: str, layers: Iterable[int], paths: Iterable[str]
) -> bool:
    """Whether the `layers` have what is called so, as far as names without an index can tell."""
    if not all(re.fullmatch(r"(?!.*\b\d+\.)[\w.]+", name) for name in names):
        return True
    inside = tuple(f"{stack}.{index}.".removeprefix(".") for index in layers)
    return any(path.startswith(inside) and matches_suffix(path, names) for path in paths)


def _partial(
    names: Sequence[str], stack: str, count: int, others: tuple[int, ...], ends: Sequence[str]
) -> str:
    """That `names` hit some layers of a stack only, and what becomes of the others."""
    hit = f"{_listed(names)} {'hits' if len(names) == 1 else 'hit'}"
    some = f"{hit} {count - len(others)} of {count} layers of {_called(stack)}"
    if not ends:
        return f"{some}, not {_few(others)}."
    return f"{some}; the others, {_few(others)}, {' and '.join(ends)}."


def _few(indices: Iterable[int]) -> str:
    """`0-3,5`; of many ranges the first ones."""
    parts = ranges(indices).split(",")
    return ",".join(parts if len(parts) <= 8 else [*parts[:4], "..."])


def _called(stack: str) -> str:
    return stack or "the model"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
