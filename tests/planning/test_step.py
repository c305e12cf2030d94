"""The planned peak of a step is the allocator's, and what is left out is counted to the byte."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from graft import (
    BitFitConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from graft.config import TaskType
from graft.errors import PlanError, TargetError
from graft.planning.memory import KINDS
from graft.planning.setting import Row, Setting
from graft.planning.step import trace_step

from .allocator import allocated_peak
from .models import bert, gemma2, gpt2, llama, qwen3, qwen3_experts, t5

LENGTHS = (90, 13, 60)
TEXT, CLASSES, PAIRS = TaskType.CAUSAL_LM, TaskType.SEQ_CLS, TaskType.SEQ_2_SEQ_LM


def adapter(method, task=TEXT):
    makers = {
        "lora": lambda: LoraConfig(r=4, target_modules="all-linear", task_type=task),
        "ia3": lambda: IA3Config(task_type=task),
        "bitfit": lambda: BitFitConfig(task_type=task),
        "prompt": lambda: PromptTuningConfig(num_virtual_tokens=8, task_type=task),
        "p": lambda: PromptEncoderConfig(num_virtual_tokens=8, task_type=task),
        "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=8, task_type=task),
    }
    return makers[method]()


def setting(config, method, task=TEXT, **others):
    labels = {TEXT: lambda n: n - 3, CLASSES: lambda n: 1, PAIRS: lambda n: n // 2}[task]
    rows = tuple(Row(length, labels(length)) for length in LENGTHS)
    adapters = {} if method == "full" else {"a": adapter(method, task)}
    return Setting(config, task, (rows,), adapters, **others)


def together():
    """Six adapters of all methods, two rows each, in one pass."""
    adapters = {m: adapter(m) for m in ("lora", "ia3", "bitfit", "prompt", "p", "prefix")}
    rows = tuple(Row(n, n - 3, name) for name in adapters for n in (50, 20))
    return Setting(llama(), TEXT, (rows,), adapters)


SETTINGS = {
    "llama-lora-bf16": lambda: setting(llama(), "lora", dtype=torch.bfloat16),
    "llama-accumulated": lambda: replace(
        setting(llama(), "ia3"), batches=((Row(60, 50), Row(60, 50)),) * 2
    ),
    "llama-together": together,
    "qwen3-prefix-checkpointed": lambda: setting(qwen3(), "prefix", gradient_checkpointing=True),
    "qwen3-experts-lora": lambda: setting(qwen3_experts(), "lora"),
    "gemma2-bitfit": lambda: setting(gemma2(), "bitfit"),
    "gpt2-prompt": lambda: setting(gpt2(), "prompt"),
    "bert-lora": lambda: setting(bert(), "lora", CLASSES),
    "t5-full-checkpointed": lambda: setting(t5(), "full", PAIRS, gradient_checkpointing=True),
}
# Products in bfloat16 rearrange their factors in memory of their own, which shows where they are
# small.
MARGIN = {"llama-lora-bf16": 0.02}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_the_peak_is_the_allocators(name):
    planned = trace_step(SETTINGS[name]())
    assert planned.packed
    assert planned.memory.peak == pytest.approx(
        allocated_peak(SETTINGS[name]()), rel=MARGIN.get(name, 0.01)
    )


DEEP = {
    "one pass after the other": lambda: replace(
        setting(llama(6), "full"), batches=((Row(20, 9),), (Row(30, 20), Row(10, 5)))
    ),
    "checkpointed": lambda: setting(llama(6), "ia3", gradient_checkpointing=True),
    "two kinds of layers in turn": lambda: setting(gemma2(9), "prompt"),
    "two stacks": lambda: setting(t5(5), "lora", PAIRS),
    "padded, on four bits": lambda: setting(llama(5), "prompt", device="cuda", quantised=4),
}


@pytest.mark.parametrize("name", DEEP)
def test_layers_that_are_left_out_are_counted_to_the_byte(name):
    planned, whole = (trace_step(DEEP[name](), exact) for exact in (False, True))
    assert planned.memory == whole.memory  # all of its course
    assert counts(planned) == counts(whole)
    assert (planned.parameters, planned.trainable) == (whole.parameters, whole.trainable)


def counts(trace):
    return {
        (each.name, each.arguments, each.keywords): (each.count, each.flops, each.bytes)
        for each in trace.operations
        # But for the two calls on the norms of all gradients together.
        if each.name != "aten.stack.default"
        and (each.name, each.count) != ("aten.linalg_vector_norm.default", 1)
    }


def test_terms_add_up_and_the_peak_is_the_highest_moment():
    memory = trace_step(setting(llama(), "prefix", gradient_checkpointing=True)).memory
    assert memory.peak == sum(getattr(memory, kind) for kind in KINDS)
    assert memory.peak == max(moment.total for moment in memory.timeline)
    assert memory.where in [moment.phase for moment in memory.timeline]
    there = ("weights", "adapter", "optimizer", "recomputation", "prefix")
    assert all(any(moment.bytes[kind] for moment in memory.timeline) for kind in there)
    assert memory.timeline[0].bytes["gradients"] == 0


def test_what_is_held_before_the_step_is_the_models_own_bytes():
    config = llama()
    trace = trace_step(Setting(config, TEXT, ((Row(9, 5),),), {"a": LoraConfig(r=3)}))
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=3))
    own = [*model.base_model.parameters(), *model.base_model.buffers()]
    learned = [p for p in model.parameters() if p.requires_grad]
    assert trace.memory.weights == sum(t.numel() * t.element_size() for t in own)
    assert trace.memory.adapter == sum(p.numel() * 4 for p in learned)
    assert trace.memory.optimizer == sum(p.numel() * 8 + 4 for p in learned)  # and a step count
    assert (trace.trainable, trace.parameters) == model.get_nb_trainable_parameters()


def test_rows_are_padded_where_packing_is_proven_on_the_device_alone():
    packed, padded = (trace_step(setting(llama(), "lora", device=kind)) for kind in ("cpu", "cuda"))
    assert packed.packed
    assert not padded.packed
    assert "upper bound" in padded.how
    flops = [sum(each.flops * each.count for each in t.operations) for t in (packed, padded)]
    assert flops[0] < flops[1]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_by_formula(bits):
    config = llama()
    plain, small = (trace_step(setting(config, "ia3", quantised=q)) for q in (None, bits))
    linears = [m for m in LlamaForCausalLM(config).model.modules() if isinstance(m, nn.Linear)]
    saved = sum(
        linear.weight.nbytes
        - (n + 4 * linear.out_features if bits == 8 else n // 2 + 4 * (n // 64))
        for linear in linears
        for n in [linear.weight.numel()]
    )
    assert plain.memory.weights - small.memory.weights == saved
    assert plain.parameters == small.parameters


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batches": ()}, "0 rows"),
        ({"batches": ((),)}, "0 rows"),
        ({"batches": ((Row(0, 0),),)}, "0 tokens"),
        ({"batches": ((Row(4, 2, "b"),),)}, "adapter 'b'.*Did you mean|adapter 'b'.*Valid: a"),
        ({"config": LlamaConfig(vocab_size=50, hidden_size=0)}, "hidden_size"),
        ({"adapters": {}, "quantised": 4}, "cannot be trained whole"),
    ],
)
def test_what_cannot_be_planned_is_said(changes, said):
    with pytest.raises(PlanError, match=said):
        trace_step(replace(setting(llama(), "lora"), **changes))


def test_a_target_that_hits_nothing_is_the_models_own_error():
    adapters = {"a": LoraConfig(target_modules=["nowhere"])}
    with pytest.raises(TargetError):
        trace_step(replace(setting(llama(), "lora"), adapters=adapters))


def test_what_cannot_be_run_without_numbers_is_a_sentence_and_no_log(monkeypatch, caplog):
    def forward(self, x):
        return x @ x  # of no such sizes

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", forward)
    logging.getLogger("torch._subclasses.fake_tensor").addHandler(caplog.handler)
    try:
        with pytest.raises(PlanError, match="LlamaForCausalLM does not run without numbers"):
            trace_step(setting(llama(1), "lora"))
    finally:
        logging.getLogger("torch._subclasses.fake_tensor").removeHandler(caplog.handler)
    assert not caplog.records
