"""Which batches of which adapters share a forward pass.

Each adapter's batches are what they would be in a run of its own. Those that are due are put
together while they fit into a budget of tokens; what does not fit takes a pass of its own, so that
adapters whose batches fill the device take turns on the same base model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["fill_passes", "token_budget"]

Item = TypeVar("Item")

# A pass of fewer tokens keeps no device busy, so batches share it even where none is as large.
_LEAST_TOKENS = {"cpu": 1024}
_LEAST_TOKENS_ELSEWHERE = 4096


def token_budget(given: int | None, largest: int, device: str) -> int:
    """Most tokens in a pass that adapters share.

    Args:
        given: As the run file has it.
        largest: Tokens of the largest batch that is due.
        device: Its type, such as "cpu".
    """
    return given or max(largest, _LEAST_TOKENS.get(device, _LEAST_TOKENS_ELSEWHERE))


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
