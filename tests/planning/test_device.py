"""Devices by name and by size, what they need beside tensors, and what runs teach of that."""

from __future__ import annotations

import pytest
import torch

from graft.environment.machine import look_at_machine
from graft.errors import ConfigError
from graft.planning.calibration import calibrated, pace, remember, runs_on
from graft.planning.catalogue import CATALOGUE
from graft.planning.device import Device, Margin, known_device, parse_bytes, this_device
from graft.training.forecast import Forecast


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))


def a_device(name="a device", share=0.03):
    return Device(name, "cpu", 10**9, 10**9, True, Margin(1000, share, "stated"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("8g", 8 * 2**30),
        (" 1.5 GiB ", 3 * 2**29),
        ("512MiB", 2**29),
        ("1t", 2**40),
        ("4096", 4096),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "7b", "24QB", "-1GiB", "0GiB", "1e3", "nan", "24 GiB GiB"]
)
def test_what_is_no_size_is_said(text):
    with pytest.raises(ConfigError, match="no size of memory; give one such as 24GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("RTX 4090", "RTX-4090-24GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090-24GB"),
        ("4090", "RTX-4090-24GB"),
        ("rtx 3060 12gb", "RTX-3060-12GB"),
        ("A100-40GB", "A100-40GB"),
        ("a10", "A10-24GB"),
        ("t4", "T4-16GB"),
    ],
)
def test_devices_have_the_names_that_people_give_them(name, known):
    assert known_device(name).name == known


@pytest.mark.parametrize("name", CATALOGUE)
def test_what_is_stated_of_a_device(name):
    device = known_device(name)
    assert not device.here
    assert device.margin.how == "stated"
    # A box says a little more than torch finds.
    printed = float(name.rpartition("-")[2].removesuffix("GB"))
    assert 0.9 * printed < device.total_bytes / 2**30 < printed
    assert device.rates[torch.bfloat16] >= device.rates[torch.float32]


def test_a_name_that_may_be_several_devices_says_which():
    with pytest.raises(ConfigError, match="Did you mean A100-40GB or A100-80GB"):
        known_device("A100")


@pytest.mark.parametrize("name", ["H1000", "", "quantum"])
def test_an_unknown_device_is_told_those_that_are_known(name):
    with pytest.raises(ConfigError, match=r"no known device.*100-80GB"):
        known_device(name)


def test_a_size_stands_for_a_device_of_that_memory():
    device = known_device("24GiB")
    assert (device.free_bytes, device.rates) == (24 * 2**30, {})


def test_a_device_needs_its_margin_too():
    device = a_device()
    assert device.needs(10**6) == 10**6 + 30_000 + 1000
    assert device.fits(10**9 - 31_000_000)
    assert not device.fits(10**9 - 29_000_000)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about the processor")
def test_this_device_is_the_processor_with_its_memory():
    device, machine = this_device(), look_at_machine()
    assert device.here
    assert device.kind == "cpu"
    assert device.total_bytes == pytest.approx(machine.memory_gib * 2**30)
    assert 0 < device.free_bytes <= device.total_bytes


def test_runs_teach_the_margin_the_largest_counts():
    device = a_device()
    assert calibrated(device) == device
    for peak, measured in ((10_000, 11_500), (20_000, 25_000)):
        remember(device, Forecast(peak, 1.0, 0.9, 1.1), measured, None)
    learned = calibrated(device).margin
    assert learned.share == pytest.approx((25_000 - 1000) / 20_000 - 1)
    assert calibrated(device).needs(20_000) == 25_000
    assert learned.how.startswith("measured on 20")
    assert learned.how.endswith(", 2 runs")
    assert calibrated(a_device("another")) == a_device("another")


def test_runs_that_need_less_than_planned_leave_a_small_margin():
    device = a_device()
    remember(device, Forecast(10**6, 1.0, 0.9, 1.1), 9 * 10**5, None)
    assert calibrated(device).margin.share == 0.01


def test_the_pace_is_the_median_over_what_was_planned_before_any_run():
    device = a_device()
    assert pace(device) is None
    remember(device, Forecast(1000, 2.0, 1.8, 2.2), None, 3.0)
    found = pace(device)
    assert found is not None
    assert found.factor == pytest.approx(1.5)
    # What is planned next counts with that: 3 seconds, for what took 2 by its operations.
    remember(device, Forecast(1000, 3.0, 2.8, 3.2), None, 2.0)
    found = pace(device)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((1.0, 1.5))
    assert (found.factor, found.runs) == (pytest.approx(1.25), 2)
    assert calibrated(device) == device


def test_only_the_last_runs_are_kept_and_a_broken_file_is_none():
    device = a_device()
    for number in range(35):
        remember(device, Forecast(1000 + number, 1.0, 0.9, 1.1), 2000, None)
    assert [run.planned_bytes for run in runs_on(device)] == list(range(1005, 1035))
    from graft.data.cache import cache_folder

    (file,) = cache_folder().iterdir()
    file.write_text('{"runs": [{"at": 1}]}')
    assert runs_on(device) == []
