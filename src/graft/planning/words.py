"""Bytes and seconds as people read them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["decimal_size", "digits", "duration_text", "seconds_text", "short_size", "unit_of"]

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def unit_of(sizes: Iterable[int]) -> tuple[int, str]:
    """One unit for all of `sizes`, and its name: that of the largest."""
    largest = max(sizes, default=0)
    return next((unit for unit in _UNITS if largest >= unit[0]), _UNITS[-1])


def digits(value: float) -> str:
    """Three digits, and none beyond the point from 100 on."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def short_size(count: int) -> str:
    """Bytes in three digits, for a cell of a table."""
    unit, name = unit_of([count])
    return f"{digits(count / unit)} {name}" if count else "0"


def decimal_size(count: int) -> str:
    """Bytes in powers of ten, as tutorials count: 5.2 GB."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:,.4g} {name}"
    return f"{count} bytes"


def seconds_text(seconds: float) -> str:
    """A step's time: three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def duration_text(seconds: float) -> str:
    """A run's time, as far as it can be told beforehand."""
    if seconds < 100:
        return seconds_text(seconds)
    minutes = seconds / 60
    if minutes < 100:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
