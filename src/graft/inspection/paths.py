"""A regular expression tried on the paths of a model's modules."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from graft.adapt.patterns import near_miss, read_pattern, unknown_names
from graft.adapt.structure import adaptable_layers

__all__ = ["RegexTest", "try_regex"]


@dataclass(frozen=True)
class RegexTest:
    """Which paths of modules a regular expression matches.

    Attributes:
        pattern: The regular expression.
        matched: Paths that it matches as a whole, as `target_modules` asks.
        layers: Those of them that some method can adapt.
        partly: Paths in which it is found, but that it does not match as a whole.
        others: The rest.
        advice: Sentences on what to change in it, where it may not be what is meant.
    """

    pattern: str
    matched: tuple[str, ...]
    layers: tuple[str, ...]
    partly: tuple[str, ...]
    others: tuple[str, ...]
    advice: tuple[str, ...]


def try_regex(model: nn.Module, pattern: str) -> RegexTest:
    """Try `pattern` on every module of `model`.

    Raises:
        TargetError: It is no regular expression.
    """
    regex = read_pattern("regex", pattern)
    paths = [path for path, _ in model.named_modules() if path]
    matched = [path for path in paths if regex.fullmatch(path)]
    partly = [path for path in paths if not regex.fullmatch(path) and regex.search(path)]
    views = adaptable_layers(model)
    targets = {view.target_path for view in views.values()}
    layers = [path for path in matched if path in targets]
    advice = unknown_names(regex, paths)
    if not layers:
        near = near_miss(regex, [path for path in paths if path in targets])
        said = [sentence for sentence in advice if sentence.partition(".")[0] not in near]
        advice = [f"As target_modules it {near}", *said]
    return RegexTest(
        pattern=pattern,
        matched=tuple(matched),
        layers=tuple(layers),
        partly=tuple(partly),
        others=tuple(p for p in paths if not regex.search(p)),
        advice=tuple(advice),
    )
