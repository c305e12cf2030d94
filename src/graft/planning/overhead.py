"""What a step takes beside its kernels, measured on two small steps of graft's own.

Calling an operation costs Python, autograd and the model's code their time, whatever it computes;
that is seen in the step of a tiny model. In a real step kernels find less of their data in the
processor's caches than where they are timed one by one; that is seen in a step which moves much and
computes little. And memory that the system hands out anew has to be cleared by it first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from graft.adapt import get_peft_model
from graft.config import TaskType
from graft.methods import make_config
from graft.planning.kernels import Kernels
from graft.planning.operation import Operation
from graft.planning.setting import Row, Setting
from graft.planning.step import trace_step
from graft.planning.stopwatch import synchronize
from graft.training.batches import Batch
from graft.training.forward import Part, make_forward

__all__ = ["Overhead", "overhead_of"]

_STEPS, _SECONDS = 9, 2.0  # of a probe, whichever is over first; three are taken in any case
# glibc keeps so much freed memory for what comes next; what is beyond goes back to the system.
_KEPT_BY_ALLOCATOR = 2**26


@dataclass(frozen=True)
class Overhead:
    """Seconds beside the kernels.

    Attributes:
        call: Of each call.
        byte: For each byte that operations read and write.
        fresh_byte: For each byte that the system hands out anew.
    """

    call: float
    byte: float
    fresh_byte: float

    def seconds(self, operations: Sequence[Operation]) -> float:
        """Of a step that calls `operations`, in memory that is there already."""
        calls, moved = _totals(operations)
        return self.call * calls + self.byte * moved

    def paging(self, fresh: int) -> float:
        """Of a step that takes and gives back `fresh` bytes, if they go back to the system."""
        return self.fresh_byte * max(0, fresh - _KEPT_BY_ALLOCATOR)


def overhead_of(kernels: Kernels) -> Overhead:
    """The overhead on a device; measured once, in some three seconds."""
    if "overhead" not in kernels.notes:
        kernels.notes["overhead"] = asdict(_measured(kernels))
    return Overhead(**kernels.notes["overhead"])


def _measured(kernels: Kernels) -> Overhead:
    kind = kernels.kind
    tiny = _setting(width=32, layers=4, rows=(Row(8, 7),) * 2, kind=kind)
    operations, seconds = trace_step(tiny).operations, _step_seconds(tiny)
    calls, _ = _totals(operations)
    call = max(0.0, seconds - kernels.sum(operations).seconds) / calls
    if kind != "cpu":
        return Overhead(call, 0.0, 0.0)
    wide = _setting(width=256, layers=2, rows=(Row(96, 95),) * 8, kind=kind)
    operations, seconds = trace_step(wide).operations, _step_seconds(wide)
    calls, moved = _totals(operations)
    byte = max(0.0, seconds - kernels.sum(operations).seconds - call * calls) / moved
    return Overhead(call, byte, _fresh_byte())


def _setting(width: int, layers: int, rows: tuple[Row, ...], kind: str) -> Setting:
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    lora = make_config("lora", task_type=TaskType.CAUSAL_LM, r=8, target_modules="all-linear")
    return Setting(config, TaskType.CAUSAL_LM, (rows,), {"default": lora}, device=kind)


def _step_seconds(setting: Setting) -> float:
    """The median of a few real steps with one batch of rows of equal length."""
    config, (rows,) = setting.config, setting.batches
    base = AutoModelForCausalLM.from_config(config, dtype=setting.dtype).to(setting.device)
    model = get_peft_model(base, setting.adapters["default"])
    ids = torch.randint(3, config.vocab_size, (len(rows), rows[0].tokens))
    model.train()
    forward = make_forward(model, setting.task_type)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned)
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    targets = sum(row.labels for row in rows)
    batch = Batch(
        {name: each.to(setting.device) for name, each in inputs.items()},
        rows=len(rows), targets=targets, tokens=ids.numel(),
    )  # fmt: skip
    times: list[float] = []
    while len(times) < 3 or (len(times) < _STEPS and sum(times) < _SECONDS):
        synchronize(setting.device)
        start = time.perf_counter()
        forward.loss([Part(batch, 1 / targets)])[0].backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronize(setting.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _fresh_byte() -> float:
    """Seconds to clear a byte of memory for the first time, beyond any other time."""
    size = 2**26  # too much for the allocator to keep
    first, again = [], []
    for _ in range(3):
        memory = torch.empty(size, dtype=torch.uint8)
        for times in (first, again):
            start = time.perf_counter()
            memory.zero_()
            times.append(time.perf_counter() - start)
        del memory
    return max(0.0, statistics.median(first) - statistics.median(again)) / size


def _totals(operations: Sequence[Operation]) -> tuple[int, int]:
    calls = sum(each.count for each in operations)
    return calls, sum(each.count * each.bytes for each in operations)
