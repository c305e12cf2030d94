"""The one algebraic form against sums written out number by number, in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graft.adapt.layers import LayerView, view_of
from graft.methods.affine import Affine, merged

I, O, R, SCALING = 5, 4, 2, 1.5  # noqa: E741
PARTS = ("in_scale", "out_scale", "low_rank", "shift")
EVERY = [set(c) for n in range(len(PARTS) + 1) for c in itertools.combinations(PARTS, n)]


def make_affine(parts: set[str], inputs: int = I, outputs: int = O, columns: int | None = None):
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    low = "low_rank" in parts
    return Affine(
        in_scale=draw(inputs) if "in_scale" in parts else None,
        out_scale=draw(outputs) if "out_scale" in parts else None,
        A=draw(R, columns or inputs) if low else None,
        B=draw(outputs, R) if low else None,
        scaling=SCALING if low else 1.0,
        shift=draw(outputs) if "shift" in parts else None,
    )


def linear(bias: bool = True) -> LayerView:
    return view_of(nn.Linear(I, O, bias=bias, dtype=torch.float64), "layer")


def conv1d() -> LayerView:
    module = Conv1D(O, I).double()
    nn.init.normal_(module.bias)
    return view_of(module, "layer")


def run(view: LayerView, affines: list[Affine], x: Tensor) -> Tensor:
    """What the layer with `affines` gives for `x`, in the order in which a site applies them."""
    scaled = x
    for affine in affines:
        scaled = affine.scale_input(view, scaled)
    y = view.module(scaled)
    for affine in affines:
        y = affine.adapt_output(view, x, y)
    return y


def run_merged(view: LayerView, affines: list[Affine], x: Tensor) -> Tensor:
    view.write(*merged(view, affines))
    try:
        return view.module(x)
    finally:
        view.restore()


def summed(view: LayerView, affine: Affine, x: Tensor) -> Tensor:
    """`out_o (sum_i W_oi in_i x_i + b_o) + s sum_r B_or sum_i A_ri x_i + shift_o`, by loops."""
    weight = view.weight.tolist()
    bias = [0.0] * O if view.bias is None else view.bias.tolist()
    rows = []
    for row in x.tolist():
        out = []
        for o in range(O):
            factors = [1.0] * I if affine.in_scale is None else affine.in_scale.tolist()
            y = sum(weight[o][i] * factors[i] * row[i] for i in range(I)) + bias[o]
            if affine.out_scale is not None:
                y *= affine.out_scale[o].item()
            if affine.A is not None:
                for r in range(R):
                    low = sum(affine.A[r, i].item() * row[i] for i in range(I))
                    y += affine.scaling * affine.B[o, r].item() * low
            if affine.shift is not None:
                y += affine.shift[o].item()
            out.append(y)
        rows.append(out)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("parts", EVERY, ids=lambda parts: "+".join(sorted(parts)) or "nothing")
@pytest.mark.parametrize("make", [linear, conv1d, lambda: linear(bias=False)])
def test_forward_and_merge_are_the_formula(make, parts):
    view, affine, x = make(), make_affine(parts), torch.randn(3, I, dtype=torch.float64)
    expected = summed(view, affine, x)
    torch.testing.assert_close(run(view, [affine], x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(run_merged(view, [affine], x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("first", "second"), [(a, b) for a in EVERY for b in EVERY if len(a) + len(b) == 3]
)
def test_several_act_in_order_and_merge_alike(first, second):
    view, x = linear(), torch.randn(3, I, dtype=torch.float64)
    affines = [make_affine(first), make_affine(second)]
    found = run(view, affines, x)
    torch.testing.assert_close(run_merged(view, affines, x), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parts", EVERY, ids=lambda parts: "+".join(sorted(parts)) or "nothing")
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: nn.Conv1d(I, O, 3, stride=2, padding=1), (9,)),
        (lambda: nn.Conv2d(I, O, (2, 3), dilation=2, padding="same"), (6, 7)),
        (lambda: nn.Conv2d(I, O, 3, padding=1, padding_mode="circular"), (6, 7)),
        (lambda: nn.Conv3d(I, O, 2), (3, 4, 3)),
    ],
    ids=["conv1d", "conv2d", "circular", "conv3d"],
)
def test_a_convolution_is_a_matrix_over_patches(make, size, parts):
    module, x = make().double(), torch.randn(2, I, *size, dtype=torch.float64)
    view, affine = view_of(module, "layer"), make_affine(parts, columns=make().weight[0].numel())
    found, merged_gives = run(view, [affine], x), run_merged(view, [affine], x)

    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    if affine.in_scale is not None:
        for channel, factor in enumerate(affine.in_scale):
            weight[:, channel] *= factor
    if affine.out_scale is not None:
        for channel, factor in enumerate(affine.out_scale):
            weight[channel] *= factor
            bias[channel] *= factor
    if affine.A is not None:
        weight += SCALING * (affine.B @ affine.A).view_as(weight)
    if affine.shift is not None:
        bias += affine.shift
    module.weight.data, module.bias.data = weight, bias
    torch.testing.assert_close(found, module(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(merged_gives, module(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("parts", [set(), {"low_rank"}, {"out_scale", "shift"}])
def test_an_embedding_is_a_matrix_over_one_hot_ids(parts):
    module = nn.Embedding(I, O, dtype=torch.float64)
    view, affine = view_of(module, "layer"), make_affine(parts)
    ids = torch.tensor([[0, 4, 2], [2, 2, 1]])
    one_hot = nn.functional.one_hot(ids, I).double()
    expected = one_hot @ module.weight
    if affine.out_scale is not None:
        expected = expected * affine.out_scale
    if affine.A is not None:
        expected = expected + SCALING * (one_hot @ affine.A.T) @ affine.B.T
    if affine.shift is not None:
        expected = expected + affine.shift
    torch.testing.assert_close(run(view, [affine], ids), expected, rtol=0, atol=1e-12)
    if affine.shift is None:
        torch.testing.assert_close(run_merged(view, [affine], ids), expected, rtol=0, atol=1e-12)


def test_a_scaled_embedding_scales_the_update_alike():
    module = nn.Embedding(I, O, dtype=torch.float64)
    module.embed_scale = 3.0
    view, affine, ids = view_of(module, "layer"), make_affine({"low_rank"}), torch.tensor([1, 4])
    plain = affine.delta().T[ids]
    found = affine.adapt_output(view, ids, torch.zeros(2, O, dtype=torch.float64))
    torch.testing.assert_close(found, 3.0 * plain, rtol=0, atol=1e-12)


def test_a_norm_takes_a_shift():
    module = nn.LayerNorm(O, dtype=torch.float64)
    view, affine = view_of(module, "norm"), make_affine({"shift"})
    x = torch.randn(3, O, dtype=torch.float64)
    expected = module(x) + affine.shift
    torch.testing.assert_close(run(view, [affine], x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(run_merged(view, [affine], x), expected, rtol=0, atol=1e-12)


def test_the_output_keeps_its_dtype_and_the_arguments_their_values():
    view = view_of(nn.Linear(I, O).bfloat16(), "layer")
    affine = make_affine(set(PARTS))
    x, y = torch.randn(3, I).bfloat16(), torch.randn(3, O).bfloat16()
    before = x.clone(), y.clone(), view.weight.clone(), view.bias.clone()
    assert affine.scale_input(view, x).dtype == torch.bfloat16
    assert affine.adapt_output(view, x, y).dtype == torch.bfloat16
    weight, bias = merged(view, [affine])
    assert weight.dtype == bias.dtype == torch.float32
    for tensor, was in zip((x, y, view.weight, view.bias), before, strict=True):
        assert torch.equal(tensor, was)


def test_gradients_reach_every_part():
    parts = make_affine(set(PARTS))
    tensors = [parts.in_scale, parts.out_scale, parts.A, parts.B, parts.shift]
    for tensor in tensors:
        tensor.requires_grad_()
    view = linear()

    def function(x, in_scale, out_scale, a, b, shift):
        affine = Affine(in_scale, out_scale, a, b, SCALING, shift)
        return run(view, [affine], x)

    x = torch.randn(2, I, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *tensors))


def test_dropout_is_on_the_input_of_a_and_a_merge_leaves_it_out():
    view, x = linear(), torch.ones(400, I, dtype=torch.float64)
    plain = make_affine({"low_rank"})
    dropped = Affine(A=plain.A, B=plain.B, scaling=plain.scaling, dropout=0.5)
    zeros = torch.zeros(400, O, dtype=torch.float64)
    torch.manual_seed(3)
    found = dropped.adapt_output(view, x, zeros)
    torch.manual_seed(3)
    kept = nn.functional.dropout(x, 0.5)
    expected = SCALING * kept @ plain.A.T @ plain.B.T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for one, other in zip(merged(view, [dropped]), merged(view, [plain]), strict=True):
        assert torch.equal(one, other)


def test_dropout_on_the_columns_drops_an_input_for_all_tokens():
    plain = make_affine({"low_rank"})
    dropped = Affine(A=plain.A, B=plain.B, scaling=plain.scaling, dropout=0.5)
    once = dropped.with_input_dropped()
    assert once.dropout == 0.0
    columns = once.A / plain.A  # 0 or 1 / (1 - p) for a whole column
    assert torch.equal(columns, columns[:1].expand_as(columns))
    assert set(columns.unique().tolist()) <= {0.0, 2.0}
    assert plain.with_input_dropped() is plain
    shift = Affine(shift=torch.ones(O), dropout=0.5)
    assert shift.with_input_dropped() is shift


def test_delta_is_the_update_as_a_matrix():
    affine = make_affine({"low_rank"})
    expected = SCALING * affine.B @ affine.A
    torch.testing.assert_close(affine.delta(), expected, rtol=0, atol=1e-15)
    assert make_affine({"shift"}).delta() is None
    half = Affine(A=affine.A.bfloat16(), B=affine.B.bfloat16())
    assert half.delta().dtype == torch.float32
