from __future__ import annotations

import datasets
import numpy as np
import pytest

from graft.config import TaskType
from graft.errors import ConfigError
from graft.planning.setting import Row
from graft.planning.workload import DrawnRows, GivenRows, Lesson, row_sizes, smaller
from graft.training.batches import Order, split
from graft.training.config import TrainConfig

LENGTHS = [3, 50, 7, 7, 20, 11, 4, 31, 9, 15, 2, 6, 18]


def drawn(sizes: np.ndarray, settings: TrainConfig) -> DrawnRows:
    return DrawnRows({"own": Lesson(sizes, settings)}, "cpu")


@pytest.fixture
def sizes() -> np.ndarray:
    return np.array([[n, n - 1] for n in LENGTHS])


def settings(**changes: object) -> TrainConfig:
    given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "seed": 5}
    return TrainConfig(**{**given, "num_train_epochs": 2.0, **changes})


def test_passes_are_those_that_training_draws(sizes):
    order = Order(len(LENGTHS), 4, 5)
    passes = [
        rows for step in range(2 * order.steps_per_epoch) for rows in split(order.step(step), 2)
    ]
    tokens = [sum(LENGTHS[i] for i in rows) for rows in passes]
    found = drawn(sizes, settings()).workload()
    assert found.sizes == tuple(sorted(tokens))
    assert sum(row.tokens for row in found.longest) == max(tokens)
    assert found.tokens == sum(tokens) / (2 * order.steps_per_epoch)
    assert (found.steps, found.steps_per_epoch) == (2 * order.steps_per_epoch, 4)
    mean = sum(tokens) / len(tokens)
    typical = sum(row.tokens for row in found.typical)
    assert all(abs(typical - mean) <= abs(other - mean) for other in tokens)


def test_a_padded_pass_costs_its_longest_row_for_each(sizes):
    passes = [rows for step in range(8) for rows in split(Order(len(LENGTHS), 4, 5).step(step), 2)]
    cost = [len(rows) * max(LENGTHS[i] for i in rows) for rows in passes]
    longest = drawn(sizes, settings()).workload(padded=True).longest
    assert len(longest) * max(row.tokens for row in longest) == max(cost)


def test_parts_are_more_and_smaller_passes_of_the_same_steps(sizes):
    whole = drawn(sizes, settings(per_device_train_batch_size=4)).workload()
    parts = drawn(sizes, settings(per_device_train_batch_size=4)).workload(parts=4)
    assert parts.passes > whole.passes
    assert parts.steps == whole.steps
    assert parts.tokens == whole.tokens
    assert [row.tokens for row in parts.longest] == [max(LENGTHS)]


def test_rows_are_cut(sizes):
    found = drawn(sizes, settings()).workload(length=10)
    assert found.length == 10
    assert found.tokens < drawn(sizes, settings()).workload().tokens


@pytest.mark.parametrize(
    ("task", "labels", "tokens"),
    [
        (TaskType.CAUSAL_LM, 31, 32),
        (TaskType.TOKEN_CLS, 32, 32),
        (TaskType.SEQ_CLS, 1, 32),
        (TaskType.SEQ_2_SEQ_LM, 32, 64),
    ],
)
def test_given_rows_are_all_alike(task, labels, tokens):
    found = GivenRows(3, 32, 2, task, None).workload()
    assert found.longest == found.typical == (Row(32, labels),) * 3
    assert found.passes == 2
    assert found.tokens == 3 * 2 * tokens


def test_what_is_not_said_of_rows_is_usual_and_never_more_than_the_model_reads():
    assert GivenRows(None, None, 1, TaskType.CAUSAL_LM, None).workload().length == 512
    assert GivenRows(None, None, 1, TaskType.CAUSAL_LM, 44).workload().length == 44


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [
        (0, 8, "0 rows"),
        (-1, 8, "-1 rows"),
        (2, 0, "0 tokens"),
        (2, 1, "2 or more"),
        (2, 65, "64 positions"),
        (10**6, 64, "beyond any device"),
    ],
)
def test_rows_that_cannot_be(rows, length, message):
    with pytest.raises(ConfigError, match=message):
        GivenRows(rows, length, 1, TaskType.CAUSAL_LM, 64)


def test_virtual_tokens_that_leave_no_room():
    with pytest.raises(ConfigError, match="virtual tokens"):
        GivenRows(2, 8, 1, TaskType.CAUSAL_LM, -88)


def test_sizes_of_prepared_rows():
    rows = {
        "input_ids": [[1, 2, 3], [1], [4, 5], [9, 9, 9, 9]],
        "labels": [[-100, 2, 3], [1], [4, -100], [9, 9, -100, 9]],
    }
    data = datasets.Dataset.from_dict(rows).select([3, 0, 2, 1])
    expected = []
    for index in (3, 0, 2, 1):
        labels = rows["labels"][index]
        expected.append([len(labels), sum(label != -100 for label in labels[1:])])
    assert row_sizes(data, TaskType.CAUSAL_LM).tolist() == expected
    assert row_sizes(data, TaskType.SEQ_CLS).tolist() == [[n, 1] for n, _ in expected]


def test_parts_divide_a_batch():
    assert list(smaller(12)) == [2, 3, 4, 6, 12]
    assert list(smaller(1)) == []
