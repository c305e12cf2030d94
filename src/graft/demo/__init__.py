"""The bundled base model and the task of `graft demo`: a model of 1.4M parameters and its data.

The model is package data, pretrained by `pretrain.py` on the text of `corpus.py`; the task files
order notes as records in a style the model has never seen. Running the demo is left to `run.py`.
"""

from pathlib import Path

from graft.demo.corpus import task_items

__all__ = ["demo_model_path", "heldout_rows", "train_rows"]


def demo_model_path() -> Path:
    """The folder of the bundled base model, in transformers' format."""
    return Path(__file__).parent / "assets"


def train_rows() -> list[dict[str, str]]:
    """The 1024 rows (`prompt`, `completion`) that the demo's adapters learn from."""
    return task_items(seed=0, n=1024, split="train")


def heldout_rows() -> list[dict[str, str]]:
    """The 200 rows (`prompt`, `completion`) that the demo's adapters are measured on."""
    return task_items(seed=0, n=200, split="heldout")
