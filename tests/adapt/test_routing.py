from __future__ import annotations

import pytest
import torch

from graft.adapt.routing import BASE, Router, RowGroup, group_rows, in_group_order
from graft.errors import ConfigError

KNOWN = ["cat", "dog"]


def test_rows_with_the_same_adapters_stand_together():
    order, groups = group_rows(["dog", "cat", BASE, "dog", ["cat", "dog"], "cat"], KNOWN)
    assert order == [0, 3, 1, 5, 2, 4]
    assert groups == [
        RowGroup(slice(0, 2), ("dog",)),
        RowGroup(slice(2, 4), ("cat",)),
        RowGroup(slice(4, 5), ()),
        RowGroup(slice(5, 6), ("cat", "dog")),
    ]
    assert [group.size for group in groups] == [2, 2, 1, 1]


def test_the_order_of_a_rows_adapters_counts():
    _, groups = group_rows([["cat", "dog"], ["dog", "cat"]], KNOWN)
    assert [group.adapters for group in groups] == [("cat", "dog"), ("dog", "cat")]


def test_rows_that_are_grouped_keep_their_order():
    order, groups = group_rows(["cat"] * 3, KNOWN)
    assert order == [0, 1, 2]
    assert groups == [RowGroup(slice(0, 3), ("cat",))]


def test_an_unknown_adapter_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no adapter 'dogg'\. Did you mean dog"):
        group_rows(["cat", "dogg"], KNOWN)
    with pytest.raises(ConfigError, match="Did you mean __base__"):
        group_rows(["__bas__"], KNOWN)


def test_routing_holds_inside_the_block_and_nests():
    router = Router()
    outer = [RowGroup(slice(0, 2), ("cat",))]
    with router.use(outer):
        assert list(router.groups) == outer
        with router.use([]):
            assert router.groups == ()
        assert list(router.groups) == outer
        with pytest.raises(ConfigError), router.use([RowGroup(slice(0, 3), ())]):
            router.sizes(4)
        assert list(router.groups) == outer
    assert router.groups == ()


def test_what_is_kept_is_kept_inside_the_block_alone():
    router = Router()
    with router.keeping():
        router.kept["site"] = 1
        with router.keeping():
            assert router.kept == {}
        assert router.kept == {"site": 1}
    assert router.kept is None


def test_a_recomputation_sees_the_routing_of_its_forward():
    router = Router()
    with router.use([RowGroup(slice(0, 2), ("cat",))]):
        forward, again = router.checkpoint_contexts()
        with forward:
            assert router.groups[0].adapters == ("cat",)
    with router.use([RowGroup(slice(0, 9), ("dog",))]):
        with again:
            assert router.groups[0].adapters == ("cat",)
        assert router.groups[0].adapters == ("dog",)


def test_groups_scale_with_the_rows_of_a_layer():
    router = Router()
    with router.use([RowGroup(slice(0, 1), ("cat",)), RowGroup(slice(1, 4), ())]):
        assert router.sizes(4) == [1, 3]
        assert router.sizes(12) == [3, 9]  # such as beams
        with pytest.raises(ConfigError, match="got 6 rows where the batch has 4"):
            router.sizes(6)


def test_values_of_the_rows_are_sorted_and_others_left():
    rows = torch.arange(3.0)[:, None]
    other = torch.arange(5)
    order = [2, 0, 1]
    assert in_group_order(rows, order, 3).flatten().tolist() == [2, 0, 1]
    assert in_group_order(other, order, 3) is other
    assert in_group_order(torch.tensor(3.0), order, 3) == 3
    assert in_group_order("text", order, 3) == "text"
    nested = in_group_order(((rows, other), [rows]), order, 3)
    assert type(nested) is tuple
    assert type(nested[1]) is list
    assert nested[0][0].flatten().tolist() == nested[1][0].flatten().tolist() == [2, 0, 1]


def test_an_adapter_acts_once_on_a_row():
    with pytest.raises(ConfigError, match="'cat' is named twice"):
        group_rows(["dog", ["cat", "dog", "cat"]], KNOWN)
