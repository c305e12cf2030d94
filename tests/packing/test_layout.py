from __future__ import annotations

import torch

from graft.adapt.routing import RowGroup
from graft.packing.layout import Layout


def test_virtual_tokens_stand_once_in_front_of_their_rows():
    groups = [RowGroup(slice(0, 2), ("a",)), RowGroup(slice(2, 3), ())]
    layout = Layout([3, 1, 2], groups, [4, 0], [None, None])
    assert [s.tokens for s in layout.segments] == [
        slice(0, 4), slice(4, 7), slice(7, 8), slice(8, 10),
    ]  # fmt: skip
    assert [s.prompt for s in layout.segments] == [None, 0, 0, None]
    assert [s.is_prompt for s in layout.segments] == [True, False, False, False]
    assert [s.length for s in layout.segments] == [4, 3, 1, 2]
    assert layout.length == 10
    assert layout.groups == [RowGroup(slice(0, 8), ("a",)), RowGroup(slice(8, 10), ())]


def test_positions_count_what_is_seen_besides():
    groups = [RowGroup(slice(0, 1), ("a",)), RowGroup(slice(1, 2), ("b",))]
    prefix = torch.zeros(1, 2, 1, 5, 2)
    layout = Layout([3, 2], groups, [2, 0], [prefix, None])
    assert [layout.first_position(s) for s in layout.segments] == [5, 7, 0]
