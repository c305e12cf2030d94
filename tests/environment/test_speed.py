from __future__ import annotations

import pytest
import torch

from graft.environment.speed import measure_products

CPU = torch.device("cpu")


def test_the_cpu_is_measured():
    state = torch.get_rng_state()
    reference, *others = measure_products(CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert (reference.dtype, reference.verdict) == ("fp32", "reference")
    assert reference.gflops is not None
    assert [product.dtype for product in others] == ["bf16", "fp16", "int8"]
    for product in others:
        if product.gflops is None:
            assert product.verdict == "not supported"
        else:
            times = product.gflops / reference.gflops
            like = "as fp32" if times >= 0.8 else "works, slower than fp32"
            assert product.verdict == ("fast" if times >= 1.25 else like)


def test_a_format_without_a_kernel(monkeypatch):
    """Such as int8 on Apple's GPUs."""

    def missing(*args: object) -> None:
        raise NotImplementedError("aten::_int_mm")

    monkeypatch.setattr(torch, "_int_mm", missing)
    product = measure_products(CPU)[-1]
    assert (product.dtype, product.gflops, product.verdict) == ("int8", None, "not supported")


def test_a_device_without_any_kernel(monkeypatch):
    """Such as a GPU that is newer than the build."""

    def missing(*args: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(torch, "mm", missing)
    verdicts = {product.dtype: product.verdict for product in measure_products(CPU)}
    assert verdicts["fp32"] == verdicts["bf16"] == "not supported"


@pytest.mark.parametrize("name", ["mm", "_int_mm"])
def test_a_device_that_is_full(monkeypatch, name):
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, name, full)
    verdicts = {product.verdict for product in measure_products(CPU)}
    assert verdicts == {"not measured: out of memory"}


@pytest.mark.gpu
def test_an_accelerator_is_measured():
    device = torch.accelerator.current_accelerator()
    assert device is not None
    assert measure_products(device)[0].gflops
