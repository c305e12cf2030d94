"""`generate` with adapters: compose the rows once, hand them to transformers, clean up after."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache

from graft.adapt.compose import Composer
from graft.adapt.composition import Composition
from graft.adapt.outputs import without_virtual_tokens
from graft.adapt.routing import RowGroup, in_group_order
from graft.errors import ConfigError

if TYPE_CHECKING:
    from graft.adapt.model import PeftModel

__all__ = ["generate"]


def generate(
    model: PeftModel,
    composer: Composer | None,
    args: Sequence[Any],
    adapter_names: Sequence | None,
    kwargs: dict[str, Any],
) -> Any:
    """See `PeftModel.generate`."""
    base: Any = model.base_model
    named = zip(inspect.signature(base.generate).parameters, args, strict=False)
    inputs = {**dict(named), **kwargs}
    if adapter_names is None:
        _, groups = model.route(None, 1)  # the number of rows does not matter to one group
        if not model.has_virtual_tokens(groups):
            with _generating(model, groups):
                return base.generate(**inputs)  # from whatever the model reads, sounds too
    if "inputs" in inputs:
        inputs["input_ids"] = inputs.pop("inputs")
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    shown = ids if ids is not None else embeds
    if shown is None:
        raise ConfigError("generate() needs input_ids or inputs_embeds.")
    rows = shown.shape[0]
    order, groups = model.route(adapter_names, rows)
    inputs = {name: in_group_order(value, order, rows) for name, value in inputs.items()}
    if ids is not None and inputs.get("attention_mask") is None:
        inputs["attention_mask"] = _mask_of(base, inputs["input_ids"], inputs)
    with _generating(model, groups):
        if not model.has_virtual_tokens(groups):
            out = base.generate(**inputs)
        else:
            assert composer is not None
            out = _with_virtual_tokens(model, composer, groups, inputs, shown.shape[1])
    return _unsorted(out, order)


@contextmanager
def _generating(model: PeftModel, groups: Sequence[RowGroup]) -> Iterator[None]:
    """The surroundings of a whole `generate`: adapters do not change from token to token."""
    base: Any = model.base_model
    head = base.get_output_embeddings()
    with ExitStack() as stack:
        if head is not None:
            stack.callback(head.register_forward_pre_hook(_in_one_piece).remove)
        for context in (model.router.use(groups), model.router.keeping(), torch.no_grad()):
            stack.enter_context(context)
        yield


def _in_one_piece(head: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The last token of each row stands apart in memory; for such an input torch copies a frozen
    weight once for each row."""
    return (args[0].contiguous(), *args[1:])


def _with_virtual_tokens(
    model: PeftModel, composer: Composer, groups: Sequence, inputs: dict[str, Any], text: int
) -> Any:
    base: Any = model.base_model
    batch: Composition = model.compose(groups, text)
    config = inputs.get("generation_config")
    said = [base.generation_config.to_dict(), {} if config is None else config.to_dict(), inputs]
    setting = {name: v for values in said for name, v in values.items() if v is not None}
    if batch.prefix_length and setting.get("cache_implementation"):
        raise ConfigError(
            f"cache_implementation={setting['cache_implementation']!r} cannot take a prefix; "
            "leave it out."
        )
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
        if batch.prefix_length and setting.get(name):
            raise ConfigError(f"{name} cannot take a prefix; leave it out.")
    if batch.prefix_length and setting.get("use_cache") is False:
        raise ConfigError("use_cache=False cannot take a prefix, which is a cache; leave it out.")
    if setting.get("prefill_chunk_size"):
        raise ConfigError("prefill_chunk_size does not go with virtual tokens; leave it out.")
    front = (
        batch.prefix_length
        if composer.encoder_decoder
        else batch.length + batch.prefix_length - text
    )
    config = copy.deepcopy(config)
    for name in ("max_length", "min_length"):
        if not setting.get(name):
            continue
        # transformers wants a config or arguments, not both.
        if config is None or inputs.get(name) is not None:
            inputs[name] = setting[name] + front
        else:
            setattr(config, name, setting[name] + front)
    if config is not None:
        inputs["generation_config"] = config
    copies = max(setting.get("num_beams") or 1, setting.get("num_return_sequences") or 1)
    arguments = composer.generation_inputs(batch, inputs, copies)
    with composer.entering(batch, inputs, generates=True, again=setting.get("use_cache") is False):
        out = base.generate(**arguments)
    # From embeddings, transformers gives the new tokens alone.
    shown = front if inputs.get("input_ids") is not None or composer.encoder_decoder else 0
    if isinstance(out, torch.Tensor):
        return out[:, shown:]
    out["sequences"] = out["sequences"][:, shown:]
    return without_virtual_tokens(out, batch, composer.encoder_decoder, same_ids=False)


def _mask_of(base: Any, ids: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """transformers' rule: pads are masked where the pad token is not also an end token."""
    config = inputs.get("generation_config") or base.generation_config
    pad = inputs.get("pad_token_id", config.pad_token_id)
    end = inputs.get("eos_token_id", config.eos_token_id)
    ends = [end] if isinstance(end, int) else list(end or [])
    if pad is None or pad in ends:
        return torch.ones_like(ids)
    return (ids != pad).long()


def _unsorted(out: Any, order: Sequence[int]) -> Any:
    """`out` with the sorting of rows undone; each row may have several sequences or beams."""
    rows = len(order)
    if list(order) == sorted(order):
        return out
    inverse = sorted(range(rows), key=lambda index: order[index])

    def indices(total: int) -> torch.LongTensor:
        each = total // rows
        return torch.LongTensor([row * each + k for row in inverse for k in range(each)])

    def restored(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(restored(item) for item in value)
        if isinstance(value, torch.Tensor):
            return value[indices(value.shape[0]).to(value.device)]
        if isinstance(value, Cache):
            own: Any = getattr(value, "self_attention_cache", value)
            value.reorder_cache(indices(own.layers[0].keys.shape[0]))
        return value

    if isinstance(out, torch.Tensor):
        return restored(out)
    made = {name: restored(value) for name, value in out.items()}
    if made.get("beam_indices") is not None:  # they count beams over all rows
        own, beams = made["beam_indices"], made["scores"][0].shape[0] // rows
        moved = torch.tensor(order, device=own.device)[own.clamp(min=0) // beams] * beams
        made["beam_indices"] = torch.where(own < 0, own, moved + own % beams)
    return type(out)(**made)
