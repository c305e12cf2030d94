"""An adapter folded into its base model for good: a plain transformers folder, proven equal.

Folding itself is `graft.adapt.merge`'s. Here is what surrounds it: the folder's files, the proof
that what lies on disk does what base model and adapter did, and what rounding the weights costs.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graft.atomic import require_room, whole_folder
from graft.config import PeftConfig, TaskType
from graft.download import adapter_folder
from graft.errors import CheckpointError, MergeError
from graft.hub import load_config, load_model, load_tokenizer
from graft.inference import Predictor

__all__ = ["DTYPES", "MergeReport", "merge"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Numbers that differ in their last digits only, after a forward in fp32 through many layers.
_TOLERANCE = 1e-4
_ROWS, _LENGTH = 4, 32


@dataclass(frozen=True)
class MergeReport:
    """How the merged model compares with base model and adapter, all computed in fp32.

    Attributes:
        folder: The merged model.
        dtype: Of its weights.
        bytes: Size of the folder.
        tokens: Random tokens, in rows, that the logits were compared on.
        effect: Most by which the adapter moves a logit of the base model.
        error: Most by which merging changed a logit.
        rounding: Most by which a logit changed when the weights were rounded to `dtype`; None
            where they were not.
        agreement: Share of the positions whose likeliest choice stayed the same in the end.
    """

    folder: Path
    dtype: str
    bytes: int
    tokens: int
    effect: float
    error: float
    rounding: float | None
    agreement: float


def merge(
    source: str | Path,
    out: str | Path,
    base_model: str | None = None,
    dtype: torch.dtype | None = None,
) -> MergeReport:
    """Fold the adapter at `source` into its base model and write a plain transformers folder.

    The folder appears once it was read back and compared: each weight with the one computed, and
    the logits with those of base model and adapter.

    Args:
        source: Folder of the adapter, or its id on a hub.
        out: The folder to write; it must not be there, or be empty.
        base_model: The base model, where the adapter's name for it does not lead there.
        dtype: Of the weights written, one of `DTYPES`; None takes that of the base model. They
            are merged in fp32 and rounded once.

    Raises:
        MergeError: An adapter that no weights can hold, an `out` that is in use, or a merged
            model that does not do the same. Nothing is written.
    """
    target = _unused(out)
    _refuse_virtual_tokens(source)
    predictor = Predictor.load(source, base_model, torch.float32, torch.device("cpu"))
    model: Any = predictor.model
    name, revision = model.base_model.name_or_path, model.active_peft_config.revision
    stored: Any = load_config(name, None if base_model else revision).dtype
    dtype = dtype or (stored if stored in DTYPES.values() else torch.float32)

    inputs = _random_inputs(predictor)
    adapted = _logits(model, inputs)
    with model.disable_adapter():
        effect = _distance(_logits(model, inputs), adapted)
    try:
        merged = model.merge_and_unload()
    except MergeError as error:
        raise MergeError(f"{source}: {error} `graft generate` and `graft chat` do.") from None
    error = _distance(_logits(merged, inputs), adapted)
    _require_equal(error, adapted, "The merged model")

    with whole_folder(target) as folder:
        merged.to(dtype).save_pretrained(folder)
        _save_tokenizer(predictor, folder, name)
        _save_stop_ids(predictor, folder)
        read = load_model(str(folder), predictor.task_type, dtype=torch.float32).eval()
        _require_same_weights(read, merged)
        found = _logits(read, inputs)
        if dtype is torch.float32:
            error = _distance(found, adapted)
            _require_equal(error, adapted, "What was read back from disk")
    return MergeReport(
        folder=target,
        dtype=str(dtype).removeprefix("torch."),
        bytes=sum(path.stat().st_size for path in target.rglob("*")),
        tokens=inputs["input_ids"].numel(),
        effect=effect,
        error=error,
        rounding=None if dtype is torch.float32 else _distance(found, adapted),
        agreement=(found.argmax(-1) == adapted.argmax(-1)).float().mean().item(),
    )


def _refuse_virtual_tokens(source: str | Path) -> None:
    """Raise a MergeError, before anything is loaded, for an adapter that no weights can hold."""
    config = PeftConfig.from_pretrained(adapter_folder(source))
    if config.is_prompt_learning:
        raise MergeError(
            f"{source} is {config.peft_type}: virtual tokens are inputs, not weights, and cannot "
            "be merged. Keep it beside the base model (`graft generate` and `graft chat` load "
            "both), or train lora, ia3 or bitfit, which merge."
        )


def _unused(out: str | Path) -> Path:
    target = Path(out).expanduser().resolve()
    if target.is_file():
        raise MergeError(f"{out} is a file; name a folder that is not there yet.")
    if target.is_dir() and any(target.iterdir()):
        raise MergeError(f"{out} is not empty; name a folder that is not there yet.")
    require_room(target)
    return target


def _random_inputs(predictor: Predictor) -> dict[str, Tensor]:
    """Rows that no training has seen: random ordinary tokens, [B, T]."""
    base: Any = predictor.model.base_model
    config = base.config.get_text_config(decoder=True)
    special = set(predictor.tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    length = min(_LENGTH, getattr(config, "max_position_embeddings", None) or _LENGTH)
    generator = torch.Generator().manual_seed(0)
    rows = ordinary[torch.randint(len(ordinary), (_ROWS, length), generator=generator)]
    if not base.config.is_encoder_decoder:
        return {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    if isinstance(config.eos_token_id, int):
        rows[:, -1] = config.eos_token_id  # some read a classifier's logits off the last one
    return {"input_ids": rows, "attention_mask": torch.ones_like(rows), "decoder_input_ids": rows}


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """All that the model's head says, [K, B, ...] with K outputs."""
    with torch.no_grad():
        outputs = model(**inputs)
    names = ("logits", "start_logits", "end_logits", "last_hidden_state")
    return torch.stack([outputs[name] for name in names if name in outputs])


def _distance(found: Tensor, wanted: Tensor) -> float:
    return (found - wanted).abs().max().item()


def _require_equal(error: float, wanted: Tensor, what: str) -> None:
    allowed = _TOLERANCE * wanted.abs().max().item()
    if not error <= allowed:  # also where it is no number
        raise MergeError(
            f"{what} does not do what base model and adapter did: its logits differ by up to "
            f"{error:.2g}, where {allowed:.2g} would be the noise of fp32. Nothing was written; "
            "keep the adapter beside the base model."
        )


def _require_same_weights(read: nn.Module, merged: nn.Module) -> None:
    """Each tensor read back must be, bit for bit, the one that was computed and rounded."""
    computed = merged.state_dict()
    for name, tensor in read.state_dict().items():
        if not torch.equal(tensor, computed[name].to(tensor.dtype)):
            raise MergeError(f"{name} was read back otherwise than it was written.")


def _save_tokenizer(predictor: Predictor, folder: Path, base_model: str) -> None:
    tokenizer = predictor.tokenizer
    if tokenizer.chat_template is None:
        with suppress(CheckpointError):  # the base model's template; it may have no tokenizer
            tokenizer.chat_template = load_tokenizer(base_model).chat_template
    tokenizer.save_pretrained(folder)


def _save_stop_ids(predictor: Predictor, folder: Path) -> None:
    """Let the folder's generation config stop where answers were trained to end."""
    path = folder / "generation_config.json"
    if predictor.task_type is not TaskType.CAUSAL_LM or not path.is_file():
        return
    # Not by transformers: it refuses to write a changed config that has other faults.
    settings = json.loads(path.read_text(encoding="utf-8"))
    if len(predictor.stop_ids) == 1:
        settings["eos_token_id"] = predictor.stop_ids[0]
    elif predictor.stop_ids:
        settings["eos_token_id"] = predictor.stop_ids
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
