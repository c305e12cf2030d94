"""Seconds of a step: its operations timed one by one, rates where they are not, and what runs say.

That a plan's seconds are those of a real step is for `benchmarks/plan_accuracy.py`, on a quiet
machine. Here: what is run, what is scaled, what is added up and what is kept.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig

from graft.config import TaskType
from graft.methods import make_config
from graft.planning import kernels, stopwatch
from graft.planning.calibration import remember
from graft.planning.device import known_device, this_device
from graft.planning.kernels import Kernels
from graft.planning.operation import Operation, TensorSpec
from graft.planning.setting import Row, Setting
from graft.planning.step import trace_step
from graft.planning.stopwatch import random_like, seconds_of
from graft.planning.timing import step_time
from graft.training.forecast import Forecast


def tensor(*shape, stride=None, dtype=torch.float32):
    return TensorSpec(shape, stride or torch.empty(shape, device="meta").stride(), dtype)


def product(m, k, n, count=1, dtype=torch.float32):
    size = dtype.itemsize * (m * k + k * n + m * n)
    a, b = tensor(m, k, dtype=dtype), tensor(k, n, dtype=dtype)
    return Operation("aten.mm.default", (a, b), (), count, 2 * m * k * n, size)


def addition(n, count=1):
    return Operation("aten.add.Tensor", (tensor(n), tensor(n)), (), count, 0, 12 * n)


class Watch(TorchDispatchMode):
    """Operations that ran, the most bytes one of them touched, and the largest number given."""

    def __init__(self):
        super().__init__()
        self.names, self.bytes, self.largest = [], 0, -math.inf

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func) == "aten.exp_.default":
            self.largest = max(self.largest, args[0].max().item())
        out = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        size = sum(t.nbytes for t in tree_leaves((args, out)) if isinstance(t, torch.Tensor))
        self.bytes = max(self.bytes, size)
        return out


# --- one operation ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        tensor(3, 4),
        tensor(3, 4, stride=(1, 3), dtype=torch.bfloat16),
        tensor(5, 6, stride=(0, 1)),
        tensor(2, 3, stride=(10, 2), dtype=torch.int64),
        tensor(0, 3),
        tensor(),
    ],
)
def test_random_numbers_are_laid_out_as_those_of_the_trace(spec):
    made = random_like(spec, "cpu")
    assert (tuple(made.shape), made.stride(), made.dtype) == (spec.shape, spec.stride, spec.dtype)
    assert made.double().ge(0).all()
    assert made.double().lt(1.001).all()


def test_an_operation_is_run_as_it_is_in_the_trace():
    norm = Operation("aten._softmax.default", (tensor(8, 16), -1, False), (), 1, 0, 1024)
    with Watch() as watch:
        assert (seconds_of(norm, "cpu") or 0) > 0
    assert watch.names.count("aten._softmax.default") > 1
    listed = Operation("aten.cat.default", ((tensor(2, 3), tensor(4, 3)), 0), (), 1, 0, 144)
    assert (seconds_of(listed, "cpu") or 0) > 0


def test_what_cannot_be_run_by_itself_has_no_seconds():
    strange = Operation("aten.mm.default", ("a storage", tensor(2, 2)), (), 1, 16, 32)
    assert seconds_of(strange, "cpu") is None


def test_numbers_changed_in_place_are_the_same_in_each_run():
    with Watch() as watch:
        seconds_of(Operation("aten.exp_.default", (tensor(64),), (), 1, 0, 512), "cpu")
    assert watch.names.count("aten.exp_.default") > 2
    assert watch.largest <= 1  # exp of exp of exp is infinite soon, and slow


@pytest.mark.parametrize(
    "large",
    [
        product(4096, 4096, 20_000),
        product(4096, 4096, 4096, dtype=torch.bfloat16),
        Operation(
            "aten.mm.default",
            (tensor(3000, 3000), tensor(3000, 9000, stride=(1, 3000))),
            (), 1, 2 * 3000 * 3000 * 9000, 4 * (9 + 27 + 27) * 10**6,
        ),
        addition(10**8),
    ],
    ids=["a head", "square", "transposed", "long"],
)  # fmt: skip
def test_a_large_operation_is_run_in_small_and_scaled_by_its_work(large, monkeypatch):
    ran = []

    def one_second(function, given, device):
        out = function(*given[0], **given[1])
        ran.append([t.shape for t in (*given[0], out)])
        return 1.0

    monkeypatch.setattr(stopwatch, "_median", one_second)
    with Watch() as watch:
        seconds = seconds_of(large, "cpu")
    assert watch.bytes <= 1.1 * 2**27
    a, b, out = ran[0]
    small = 2 * a[0] * a[1] * b[1] if large.flops else 4 * (len(a) and 3 * a[0])
    assert out.numel() > 0
    assert small <= 2e9
    assert seconds == pytest.approx((large.flops or large.bytes) / small)


# --- many ---------------------------------------------------------------------------------


@pytest.fixture
def timed(monkeypatch):
    """Operations take a nanosecond for each of their FLOPs, or bytes; which were asked for."""
    asked = []

    def take(operation, device):
        asked.append(operation)
        return 1e-9 * (operation.flops or operation.bytes)

    monkeypatch.setattr(kernels, "seconds_of", take)
    return asked


LEAST = 8e-9  # of the call that computes nothing


def test_large_operations_are_timed_once_and_kept(timed, tmp_path):
    work = [product(100, 100, 100, count=3), product(200, 100, 100, count=2), addition(10**5, 4)]
    first = Kernels("cpu", "a processor", tmp_path)
    expected = 3 * (2e-3 - LEAST) + 2 * (4e-3 - LEAST) + 4 * (1.2e-3 - LEAST)
    found = first.sum([*work, product(4, 4, 4, count=10**6)])  # small ones are no kernels' matter
    assert found.seconds == pytest.approx(expected)
    assert found.timed == 1
    assert len(timed) == 1 + 3
    first.notes["more"] = 1
    first.save()
    again = Kernels("cpu", "a processor", tmp_path)
    assert again.sum(work).seconds == pytest.approx(expected)
    assert again.notes == {"more": 1}
    assert len(timed) == 1 + 3 + 1
    other = Kernels("cpu", "another processor", tmp_path)
    other.sum(work)
    assert len(timed) == 2 * (1 + 3) + 1


def test_a_machine_that_changed_its_pace_is_timed_again(timed, tmp_path):
    kept = Kernels("cpu", "a processor", tmp_path)
    kept.sum([product(100, 100, 100)])
    kept.save()
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "probe": 100 * content["probe"]}))
    before = len(timed)
    Kernels("cpu", "a processor", tmp_path).sum([product(100, 100, 100)])
    assert len(timed) == before + 2
    file.write_text("no JSON")
    Kernels("cpu", "a processor", tmp_path).sum([product(100, 100, 100)])
    assert len(timed) == before + 4


def test_what_there_is_no_time_for_goes_by_the_rate_of_others(timed, tmp_path):
    slow = Kernels("cpu", "a processor", tmp_path)
    slow.sum([product(100, 100, 100)])
    slow._left = 0.0
    found = slow.sum([product(100, 100, 100), product(300, 100, 100)])
    assert found.seconds == pytest.approx(4 * (2e-3 - LEAST))
    assert found.timed == pytest.approx(1 / 4)


# --- a step -------------------------------------------------------------------------------


def test_a_device_that_is_elsewhere_goes_by_its_stated_rates():
    bf16 = product(512, 512, 512, count=10, dtype=torch.bfloat16)
    work = [bf16, product(512, 512, 512), addition(10**6, count=3)]
    device = known_device("A100-80GB")
    flops = 2 * 512**3
    moved = 3 * 12e6 / 2039e9
    # The 512-square product in bf16 waits for memory, not for its FLOPs.
    least = 10 * max(flops / 312e12, 2 * 3 * 512**2 / 2039e9) + flops / 19.5e12 + moved
    found = step_time(work, device, 1000)
    assert found is not None
    assert found.low == pytest.approx(least)
    assert found.low < found.seconds < found.high
    assert found.tokens_per_second == pytest.approx(1000 / found.seconds)
    assert found.how == "stated rate"
    assert step_time(work, known_device("24GiB"), 1000) is None


@pytest.fixture(scope="module")
def small_step():
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    lora = make_config("lora", task_type=TaskType.CAUSAL_LM, r=4)
    setting = Setting(config, TaskType.CAUSAL_LM, ((Row(20, 19), Row(30, 29)),), {"one": lora})
    return trace_step(setting).operations


def time_here(operations, **more):
    found = step_time(operations, this_device(), 50, **more)
    assert found is not None
    return found


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about the processor")
def test_a_step_here_is_timed_and_runs_correct_it(small_step):
    state = torch.get_rng_state()
    first = time_here(small_step)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 < first.low < first.seconds < first.high
    assert first.tokens_per_second == pytest.approx(50 / first.seconds)
    assert first.how == "measured on this machine"
    twice = [replace(each, count=2 * each.count) for each in small_step]
    assert time_here(twice).seconds == pytest.approx(2 * first.seconds)
    assert time_here(small_step) == first

    # Memory that goes back to the system and comes again costs time, if it does.
    assert time_here(small_step, fresh=2**26) == first
    paging = time_here(small_step, fresh=2**30)
    assert paging.low == first.low
    assert first.seconds < paging.seconds < paging.high

    for factor in (1.5, 2.0, 3.0):
        planned = time_here(small_step)
        forecast = Forecast(1000, planned.seconds, planned.low, planned.high)
        remember(this_device(), forecast, None, factor * first.seconds)
    learned = time_here(small_step)
    assert learned.how == "measured in 3 runs"
    expected = [factor * first.seconds for factor in (2.0, 1.5, 3.0)]
    assert [learned.seconds, learned.low, learned.high] == pytest.approx(expected)
