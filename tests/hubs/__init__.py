"""Hubs on loopback that speak as much of each protocol as the real clients ask for."""

from __future__ import annotations

from hubs.hugging_face import HuggingFaceHub
from hubs.modelscope import ModelScopeHub
from hubs.server import Faults, LoopbackHub, Repository

__all__ = ["Faults", "HuggingFaceHub", "LoopbackHub", "ModelScopeHub", "Repository"]
