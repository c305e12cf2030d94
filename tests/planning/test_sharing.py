from __future__ import annotations

import json
from dataclasses import replace

import pytest

from graft.errors import PlanError
from graft.planning.device import Margin, this_device
from graft.planning.plan import plan_of_run
from graft.planning.sharing import within_memory
from graft.training.config import RunConfig
from graft.training.runfile import parse_run_config
from tiny import SENTENCES


@pytest.fixture
def run(base_folder, tmp_path) -> RunConfig:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text * 2}) + "\n" for text in SENTENCES))
    return parse_run_config(
        {
            "base_model": str(base_folder),
            "task_type": "CAUSAL_LM",
            "adapters": {name: {"method": "lora"} for name in "abcd"},
            "data": {"train": str(rows), "max_rows": 3},
            "train": {
                "output_dir": str(tmp_path / "out"),
                "max_steps": 1,
                "per_device_train_batch_size": 1,
            },
        }
    )


def with_memory(free: int):
    return replace(this_device(), free_bytes=free, margin=Margin(0, 0.0, "stated"))


def planned(config: RunConfig) -> tuple[int, int]:
    """Bytes at the peak, and tokens of the longest pass."""
    plan = plan_of_run(config, timed=False)
    return plan.case.peak, sum(row.tokens for row in plan.case.workload.longest)


def budgeted(config: RunConfig, tokens: int) -> RunConfig:
    train = config.train.model_copy(update={"tokens_per_pass": tokens})
    return config.model_copy(update={"train": train})


def test_passes_are_shared_as_far_as_the_memory_goes(run):
    alone, batch = planned(budgeted(run, 1))
    all_four, most = planned(budgeted(run, 10**6))
    assert most == pytest.approx(4 * batch, rel=0.5)
    assert alone < all_four
    assert within_memory(run, with_memory(all_four)).train.tokens_per_pass == 4 * batch
    assert within_memory(run, with_memory(alone)).train.tokens_per_pass == batch
    with pytest.raises(PlanError, match="Even with each batch in a pass of its own"):
        within_memory(run, with_memory(alone - 1))


def test_one_adapter_has_nothing_to_share(run):
    one = run.alone("a")
    assert within_memory(one, with_memory(2**34)) == one
