"""The errors graft raises at people: what was given, what was expected, what to do.

Every class here ends the command line with one sentence and exit code 2; nothing else does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GraftError",
    "MergeError",
    "PlanError",
    "TargetError",
    "about",
    "did_you_mean",
    "nearest",
]


class GraftError(Exception):
    """Base of all errors that the user can mend."""


class ConfigError(GraftError, ValueError):
    """A setting that does not exist, is missing, or has a value that cannot work."""


class TargetError(GraftError, ValueError):
    """Target modules that match nothing, or nothing that can be adapted."""


class CheckpointError(GraftError):
    """An adapter on disk that does not fit, is broken, or would be overwritten."""


class DataError(GraftError):
    """Data that cannot be read or cannot be learned from."""


class MergeError(GraftError):
    """A merge that cannot be done, or would lose something."""


class PlanError(GraftError):
    """A step whose cost cannot be told before it is run."""


@contextmanager
def about(subject: str | None) -> Iterator[None]:
    """Say of an error inside the block what it is about; None: that is plain."""
    try:
        yield
    except GraftError as error:
        if subject is None:
            raise
        raise type(error)(f"{subject}: {error}") from None


def nearest(given: str, valid: Iterable[str], n: int = 3) -> list[str]:
    """The up to `n` names of `valid` that look most like `given`, best first."""
    names = list(dict.fromkeys(valid))
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(given.lower(), folded, n=n, cutoff=0.6)
    return [folded[name] for name in close]


def did_you_mean(given: str, valid: Iterable[str], n: int = 3) -> str:
    """`" Did you mean a, b?"`, or the valid names (up to ten) where none is near."""
    names = list(dict.fromkeys(valid))
    close = nearest(str(given), names, n)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    if not names:
        return ""
    shown = ", ".join(sorted(names)[:10])
    return f" Valid: {shown}{', ...' if len(names) > 10 else ''}."
