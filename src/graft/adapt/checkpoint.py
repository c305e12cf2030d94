"""Adapters on disk: PEFT's format in both directions, and what PEFT has no place for beside it.

`adapter_config.json`, `adapter_model.safetensors` and `README.md` are PEFT's.
`graft_state.safetensors` holds the encoder of P-Tuning or Prefix-Tuning, so that a run can go on.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from graft.adapt.adapter import Adapter, adapter_tensors, build_adapter, set_adapter_tensors
from graft.config import CONFIG_NAME, PeftConfig
from graft.errors import CheckpointError, did_you_mean
from graft.methods import BitFitConfig
from graft.methods.base import check_shape

if TYPE_CHECKING:
    from graft.adapt.model import PeftModel

__all__ = ["STATE_NAME", "WEIGHTS_NAME", "load", "read", "save", "write_atomically"]

WEIGHTS_NAME = "adapter_model.safetensors"
STATE_NAME = "graft_state.safetensors"
_OLD_WEIGHTS = "adapter_model.bin"
