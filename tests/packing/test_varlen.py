"""What the kernel of a GPU is handed, tried with its contract written out, on a CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import MistralConfig, MistralForCausalLM

from graft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from graft.adapt.routing import RowGroup
from graft.config import TaskType
from graft.packing import attention, varlen, why_padded
from graft.packing.attention import _attention as packed_attention
from graft.packing.layout import Layout
from graft.packing.proof import proven_forward
from graft.packing.segments import Rules
from graft.training.forward import make_forward
from tiny import make_tokenizer, tiny_llama

GROUPS = [RowGroup(slice(0, 2), ("a",)), RowGroup(slice(2, 4), ("b",))]
HEADS, REPEATS, SIZE = 2, 3, 8


def kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn`, one query at a time.

    query [Tq, Hq, D], key and value [Tk, Hkv, D]; sequence i is [ends[i], ends[i + 1]) of each. A
    window (left, right) counts from the key that is as far from the last one as the query is from
    the last query; -1 is without end.
    """
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q[0] == cu_seq_k[0] == 0
    assert (cu_seq_q[-1], cu_seq_k[-1]) == (len(query), len(key))
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    repeats, rest = divmod(query.shape[1], key.shape[1])
    assert not rest
    assert enable_gqa or repeats == 1
    left, right = window_size
    out: list[Tensor] = []
    for number in range(len(cu_seq_q) - 1):
        q, k, v = (
            own[ends[number] : ends[number + 1]]
            for own, ends in ((query, cu_seq_q), (key, cu_seq_k), (value, cu_seq_k))
        )
        for i in range(len(q)):
            at = i + len(k) - len(q)
            first = 0 if left < 0 else max(0, at - left)
            last = len(k) if right < 0 else min(len(k), at + right + 1)
            heads = [
                ((k[first:last, h // repeats] @ q[i, h]) * scale).softmax(0)
                @ v[first:last, h // repeats]
                for h in range(q.shape[1])
            ]
            out.append(torch.stack(heads))
    return torch.stack(out)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Attention as on a GPU, with the kernel written out."""
    calls: list[int] = []

    def counted(*args, **kwargs):
        calls.append(len(args[3]) - 1)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(varlen, "_kernel", lambda: counted)
    monkeypatch.setattr(attention, "_has_kernel", lambda device: True)
    varlen.disagreement.cache_clear()
    yield calls
    varlen.disagreement.cache_clear()


def _both_ways(monkeypatch, layout: Layout, module, leaves, **settings) -> list[list[Tensor]]:
    found = []
    for at_once in (False, True):
        monkeypatch.setattr(attention, "_has_kernel", lambda device, at_once=at_once: at_once)
        out, _ = packed_attention(module, *leaves[:3], None, packed=layout, scaling=0.3, **settings)
        score = torch.arange(out.numel()).view_as(out).sin()
        found.append([out, *torch.autograd.grad((out * score).sum(), leaves, allow_unused=True)])
    return found


def _equal(one: list[Tensor], other: list[Tensor]) -> None:
    for own, its in zip(one, other, strict=True):
        torch.testing.assert_close(its, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 2), (True, 50), (False, None)])
@pytest.mark.parametrize("prompts", [[0, 0], [2, 0], [1, 3]])
@pytest.mark.parametrize("prefixed", [(), (0,), (0, 1)])
def test_it_computes_what_blocks_do(causal, window, prompts, prefixed, monkeypatch, on_a_gpu):
    fronts = [torch.randn(1, 2, HEADS, 2 + i, SIZE, requires_grad=True) for i in range(2)]
    prefixes = [fronts[i] if i in prefixed else None for i in range(2)]
    layout = Layout([3, 5, 1, 4], GROUPS, prompts, prefixes, causal)
    shapes = [(1, count, layout.length, SIZE) for count in (HEADS * REPEATS, HEADS, HEADS)]
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    leaves += [front for front in prefixes if front is not None]
    module = SimpleNamespace(layer_idx=0)
    _equal(*_both_ways(monkeypatch, layout, module, leaves, sliding_window=window))
    segments = len(layout.segments)
    # A window that ends inside a row is not the kernel's where a prefix is always seen.
    assert (segments in on_a_gpu) == (not (window == 2 and prefixed))


def test_rows_of_a_decoder_see_their_own_rows_of_the_encoder(monkeypatch, on_a_gpu):
    group = [RowGroup(slice(0, 3), ("a",))]
    source = Layout([4, 2, 6], group, [0], [None], causal=False)
    layout = Layout([3, 5, 1], group, [0], [None], source=source)
    shapes = [(1, HEADS, count, SIZE) for count in (layout.length, source.length, source.length)]
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    _equal(*_both_ways(monkeypatch, layout, SimpleNamespace(is_causal=False), leaves))


def _mistral() -> MistralForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 5}
    return MistralForCausalLM(MistralConfig(vocab_size=300, **sizes, **heads))


@pytest.mark.parametrize("make", [tiny_llama, _mistral])
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
)
def test_a_model_trains_as_on_a_cpu(make, config, on_a_gpu, monkeypatch):
    torch.manual_seed(0)
    model = get_peft_model(make(), config)
    vocabulary = min(make_tokenizer().vocab_size, 300)
    rows = [torch.randint(3, vocabulary, (length,)) for length in (9, 4, 7)]
    packed = proven_forward(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert on_a_gpu
    found = []
    for at_once in (True, False):
        monkeypatch.setattr(attention, "_has_kernel", lambda device, at_once=at_once: at_once)
        loss, _ = packed.loss(rows, rows)
        found.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
    _equal(*found)


def _strange(*args, **kwargs):
    """A kernel that counts causality from the first key."""
    query, key, value, queries, keys, *others = args
    if kwargs["window_size"] == (-1, -1):
        return kernel(*args, **kwargs)
    return kernel(query, key, value, queries, keys, *others, **kwargs | {"window_size": (-1, 1)})


def _missing(*args, **kwargs):
    raise NotImplementedError("no such kernel")


def _failing(*args, **kwargs):
    raise RuntimeError("head sizes that are no multiple of 8")


@pytest.mark.parametrize(
    ("kind", "why"),
    [(_strange, "otherwise"), (_missing, "no such kernel"), (_failing, "no multiple of 8")],
)
def test_rows_are_padded_where_the_kernel_fails(kind, why, on_a_gpu, monkeypatch):
    monkeypatch.setattr(varlen, "_kernel", lambda: kind)
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, task_type="CAUSAL_LM"))
    forward = make_forward(model, TaskType.CAUSAL_LM)
    assert forward.pads
    assert why in forward.how


def test_torch_takes_what_the_kernel_is_handed():
    """As far as can be told without a GPU: arguments, and shapes of results and gradients."""
    pytest.importorskip("torch.nn.attention.varlen")
    front = torch.randn(1, 2, HEADS, 2, SIZE)
    layout = Layout([3, 5, 1, 4], GROUPS, [2, 0], [front, None])
    shapes = [(count, layout.length, SIZE) for count in (HEADS * REPEATS, HEADS, HEADS)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        leaves = [torch.empty(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        fronts = [torch.empty(2, HEADS, 2, SIZE, dtype=torch.bfloat16, requires_grad=True)]
        spans = layout.spans(False, torch.device("cpu"))
        for window in (None, 4):
            rules = Rules(0.3, True, window, None, {})
            out = varlen.attend_at_once(*leaves, fronts, spans, rules)
            assert out.shape == (layout.length, HEADS * REPEATS, SIZE)
            grads = torch.autograd.grad(out.sum(), [*leaves, *fronts])
            assert [g.shape for g in grads] == [leaf.shape for leaf in [*leaves, *fronts]]


def test_where_the_kernel_is_not_asked():
    assert why_padded("cpu", torch.float32) is None
    assert "float32" in why_padded("cuda", torch.float32)
    assert "mps" in why_padded("mps", torch.bfloat16)


def test_a_plan_for_a_gpu_is_of_padded_rows():
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, task_type="CAUSAL_LM"))
    forward = make_forward(model, TaskType.CAUSAL_LM, "cuda", proven=False)
    assert forward.pads
    assert "upper bound" in forward.how
