"""A plan as plain data, for `--json`: bytes are integers, times are seconds."""

from __future__ import annotations

from typing import Any

from graft.planning.advice import Change
from graft.planning.case import Case
from graft.planning.formulas import Arithmetic
from graft.planning.memory import KINDS
from graft.planning.plan import Plan

__all__ = ["arithmetic_record", "plan_record"]


def plan_record(plan: Plan) -> dict[str, Any]:
    """What `plan` says.

    Where one thing was asked for, its keys stand at the top; `cases` holds each thing that was,
    `alternatives` the same on other bases and with or without checkpointing.
    """
    device = plan.device
    record: dict[str, Any] = {
        "source": plan.source,
        "model_class": plan.model_class,
        "task_type": str(plan.task_type),
        "parameters": plan.parameters,
        "device": {
            "name": device.name,
            "kind": device.kind,
            "here": device.here,
            "total_bytes": device.total_bytes,
            "free_bytes": device.free_bytes,
        },
    }
    if len(plan.cases) == 1:
        record |= _case(plan, plan.case)
    record["cases"] = [_case(plan, case) for case in plan.cases]
    record["alternatives"] = [_case(plan, case) for case in plan.alternatives]
    record["changes"] = [_change(plan, change) for change in plan.advice]
    return record


def arithmetic_record(found: Arithmetic) -> dict[str, Any]:
    """What `found` says."""
    return {
        "method": "full",
        "precision": found.base.name,
        "parameters": found.parameters,
        "weights_bytes": found.weights,
        "gradients_bytes": found.gradients,
        "optimizer_bytes": found.optimizer,
        "sum_bytes": found.together,
        "left_out": list(found.left_out),
    }


def _case(plan: Plan, case: Case) -> dict[str, Any]:
    way, rows = case.way, case.workload
    record: dict[str, Any] = {
        "method": case.learner.name,
        "precision": way.base.name,
        "gradient_checkpointing": way.gradient_checkpointing,
        "rows_per_pass": len(rows.longest),
        "passes_per_step": rows.passes,
        "longest_pass_tokens": sum(row.tokens for row in rows.longest),
        "tokens_per_step": rows.tokens,
        "problem": case.problem,
    }
    if case.trace is None:
        return record
    memory, time = case.memory, case.time
    record |= {
        "trainable_parameters": case.trace.trainable,
        "batches": case.trace.how,
        "peak_bytes": memory.peak,
        "peak_at": memory.where,
        **{f"{kind}_bytes": getattr(memory, kind) for kind in KINDS},
        "margin_bytes": plan.device.margin.over(memory.peak),
        "margin": plan.device.margin.how,
        "fits": plan.device.fits(memory.peak),
        "step_seconds": None,
    }
    if time is not None:
        record |= {
            "step_seconds": time.seconds,
            "low": time.low,
            "high": time.high,
            "tokens_per_second": time.tokens_per_second,
            "time": time.how,
            "time_range": time.reason,
        }
        if rows.steps_per_epoch is not None and rows.steps is not None:
            record |= {
                "steps_per_epoch": rows.steps_per_epoch,
                "steps": rows.steps,
                "epoch_seconds": time.seconds * rows.steps_per_epoch,
                "run_seconds": time.seconds * rows.steps,
            }
    return record


def _change(plan: Plan, change: Change) -> dict[str, Any]:
    return {
        "words": change.words,
        "settings": None if change.overrides is None else list(change.overrides),
        "times": change.times,
        **_case(plan, change.case),
    }
