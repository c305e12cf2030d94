from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graft import LoraConfig, get_peft_model
from graft.adapt import PeftModel
from graft.config import TaskType
from graft.errors import DataError
from graft.training.attachment import attach
from graft.training.batches import Order, make_batch, split, total_steps
from graft.training.config import TrainConfig
from graft.training.learner import Run
from graft.training.loop import fit
from graft.training.report import Callback
from tiny import tiny_llama

from .conftest import StopAt, fit_one

SIZES = st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31)


@given(*SIZES)
def test_every_epoch_takes_each_row_once(rows, per_step, seed):
    order = Order(rows, per_step, seed)
    epochs = 3
    steps = [order.step(i) for i in range(epochs * order.steps_per_epoch)]
    for epoch in range(epochs):
        start = epoch * order.steps_per_epoch
        seen = [row for step in steps[start : start + order.steps_per_epoch] for row in step]
        assert sorted(seen) == list(range(rows))


@given(*SIZES, st.integers(0, 50))
def test_a_step_does_not_depend_on_the_steps_before_it(rows, per_step, seed, step):
    gone_through = Order(rows, per_step, seed)
    for i in range(step):
        gone_through.step(i)
    assert gone_through.step(step) == Order(rows, per_step, seed).step(step)


def test_order_changes_with_epoch_and_seed():
    order = Order(100, 100, seed=1)
    assert order.step(0) != order.step(1)
    assert order.step(0) != Order(100, 100, seed=2).step(0)


@given(st.integers(0, 30), st.integers(1, 8))
def test_split_keeps_everything_in_order(count, size):
    pieces = split(range(count), size)
    assert [i for piece in pieces for i in piece] == list(range(count))
    assert all(len(piece) == size for piece in pieces[:-1])


@pytest.mark.parametrize(("epochs", "max_steps"), [(1, -1), (2.5, -1), (3, 7), (0.01, -1)])
def test_total_steps(epochs, max_steps):
    order = Order(10, 4, seed=0)
    settings = TrainConfig(num_train_epochs=epochs, max_steps=max_steps)
    wanted = max_steps if max_steps > 0 else math.ceil(epochs * 3)
    assert total_steps(settings, order) == wanted


def test_a_batch_counts_what_the_model_averages_over(lm_rows, lm_collator, llama):
    batch = make_batch(lm_rows[:5], lm_collator, TaskType.CAUSAL_LM)
    logits = llama(**{k: v for k, v in batch.inputs.items() if k != "labels"}).logits
    losses = [
        torch.nn.functional.cross_entropy(logits[i, t - 1], torch.tensor(label))
        for i, row in enumerate(lm_rows[:5])
        for t, label in enumerate(row["labels"])
        if t > 0 and label != -100
    ]
    assert batch.targets == len(losses)
    assert batch.tokens == sum(len(row["input_ids"]) for row in lm_rows[:5])
    torch.testing.assert_close(llama(**batch.inputs).loss, torch.stack(losses).mean())


def test_classes_count_once_per_row(class_rows, class_collator):
    batch = make_batch(class_rows[:3], class_collator, TaskType.SEQ_CLS)
    assert (batch.rows, batch.targets) == (3, 3)


def test_rows_without_anything_to_learn_are_refused(lm_collator):
    row = {"input_ids": [5, 6], "labels": [5, -100]}
    with pytest.raises(DataError, match="1 rows"):
        make_batch([row], lm_collator, TaskType.CAUSAL_LM)


# --- made ahead -------------------------------------------------------------------------------


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("graft-batches")]


class Seen(list):
    """Rows that tell which thread reads them."""

    def __init__(self, rows) -> None:
        super().__init__(rows)
        self.threads: list[str] = []

    def __getitem__(self, index):
        self.threads.append(threading.current_thread().name)
        return super().__getitem__(index)


def _adapted():
    return get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules="all-linear"))


def test_batches_of_later_steps_are_made_in_one_thread_that_ends(lm_rows, lm_collator, settings):
    rows = Seen(lm_rows)
    alive = []

    class Look(Callback):
        def on_step(self, step: int) -> None:
            alive.append(_threads())

    fit_one(
        _adapted(), rows, None, lm_collator, settings, task_type=TaskType.CAUSAL_LM,
        callbacks=[Look()],
    )  # fmt: skip
    first, later = rows.threads[:4], rows.threads[4:]  # batches of four rows
    assert set(first) == {threading.main_thread().name}
    assert len(later) == sum(
        len(Order(len(lm_rows), 4, settings.seed).step(step)) for step in range(1, 6)
    )
    assert set(later) == {"graft-batches_0"}
    assert alive[0] == ["graft-batches_0"]
    assert not _threads()


def test_many_adapters_share_the_thread(lm_rows, lm_collator, settings):
    model = PeftModel(tiny_llama())
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    runs = {name: Run(Seen(lm_rows), None, settings, config) for name in "abc"}
    for name in runs:
        attach(model, config, 1, name)
    fit(model, runs, lm_collator, task_type=TaskType.CAUSAL_LM)
    later = {name for run in runs.values() for name in run.train_rows.threads[5:]}  # one was tried
    assert later == {"graft-batches_0"}


def test_a_batch_that_cannot_be_made_is_told_at_its_own_step(lm_rows, lm_collator, settings):
    order = Order(len(lm_rows), 4, settings.seed)
    rows = [dict(row) for row in lm_rows]
    for index in order.step(3):
        rows[index]["labels"] = [-100] * len(rows[index]["labels"])
    done = []

    class Count(Callback):
        def on_step(self, step: int) -> None:
            done.append(step)

    with pytest.raises(DataError, match="no label to learn"):
        fit_one(
            _adapted(), rows, None, lm_collator, settings, task_type=TaskType.CAUSAL_LM,
            callbacks=[Count()],
        )  # fmt: skip
    assert done == [1, 2, 3]
    assert not _threads()


def test_no_thread_is_left_by_a_run_that_is_stopped(lm_rows, lm_collator, settings):
    with pytest.raises(KeyboardInterrupt):
        fit_one(
            _adapted(), lm_rows, None, lm_collator, settings, task_type=TaskType.CAUSAL_LM,
            callbacks=[StopAt(2)],
        )  # fmt: skip
    assert not _threads()


def test_no_batch_is_made_for_a_step_that_does_not_come(lm_rows, lm_collator, settings):
    """The rows of the step after the last one may be ones that nothing can be learned from."""
    order = Order(len(lm_rows), 4, settings.seed)
    rows = Seen(lm_rows)
    steps = settings.model_copy(update={"max_steps": 2})
    fit_one(_adapted(), rows, None, lm_collator, steps, task_type=TaskType.CAUSAL_LM)
    assert len(rows.threads) == len(order.step(0)) + len(order.step(1))
