from __future__ import annotations

import pytest

from graft.errors import CheckpointError
from graft.training.state import (
    _read,
    checkpoints,
)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-x", "best"):
        (tmp_path / name).mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (9, 10, 100)]
    assert checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("broken", ["training_state.json", "training_state.safetensors"])
def test_a_broken_or_missing_state_is_named(tmp_path, broken):
    with pytest.raises(CheckpointError, match="no training state"):
        _read(tmp_path)
    (tmp_path / "training_state.json").write_text("{}")
    (tmp_path / "training_state.safetensors").write_bytes(b"")
    (tmp_path / broken).write_text("{ broken")
    with pytest.raises(CheckpointError, match="is broken"):
        _read(tmp_path)
