"""Which batches of which adapters share a forward pass.

Each adapter's batches are what they would be in a run of its own. Those that are due are put
together while they fit into a budget of tokens; what does not fit takes a pass of its own, so that
adapters whose batches fill the device take turns on the same base model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["fill_passes"]

Item = TypeVar("Item")


def fill_passes(
    due: Mapping[Any, Sequence[Item]],
    size: Callable[[Sequence[Item]], int],
    budget: int,
) -> list[list[Item]]:
    """The batches of all adapters as passes, each adapter's in their order.

    A pass has at most one batch of an adapter, as its dropout is drawn for each batch.

    Args:
        due: Each adapter's batches.
        size: Tokens of a pass that holds these batches.
        budget: Most tokens in a pass; a batch that is larger has one of its own.
    """
    waiting = [deque(batches) for batches in due.values()]
    passes: list[list[Item]] = []
    while any(waiting):
        filled: list[Item] = []
        for batches in waiting:
            if batches and (not filled or size([*filled, batches[0]]) <= budget):
                filled.append(batches.popleft())
        passes.append(filled)
    return passes
