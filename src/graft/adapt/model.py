"""`PeftModel`: one frozen base model with any number of adapters of any methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import nn

from graft.adapt import checkpoint, generation, merge
from graft.adapt.attached import AttachedAdapters
from graft.adapt.composition import Composition
from graft.adapt.outputs import in_row_order, span_loss, without_virtual_tokens
from graft.adapt.recomputation import route_recomputation
from graft.adapt.routing import RowGroup, group_rows, in_group_order
from graft.atomic import write_text
from graft.config import PeftConfig, TaskType
from graft.errors import ConfigError, MergeError, did_you_mean
from graft.methods import PrefixAdapter, PromptAdapter

__all__ = ["PeftModel", "get_peft_model"]

_OF_COLUMNS = ("logits_to_keep", "cache_position")  # places in every row, however many there are
_SAVING = ("safe_serialization", "is_main_process", "save_embedding_layers")


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """Attach a new adapter to `model` and freeze everything else.

    Args:
        model: The base model. It gets hooks and loses `requires_grad`; nothing in it is replaced.
        peft_config: Of any method; not changed.
        adapter_name: Name of the adapter.
        mixed: PEFT's; any methods go together here, so it changes nothing.
        autocast_adapter_dtype: Keep adapters in fp32 over a half-precision base model. False:
            in the base model's own dtype.
        revision: Of the base model, noted in the config.
        low_cpu_mem_usage: PEFT's; adapters are made where the base model is, in any case.
    """
    if revision is not None:
        peft_config = peft_config.changed(revision=revision)
    return PeftModel(model, peft_config, adapter_name, autocast_adapter_dtype)


class PeftModel(AttachedAdapters):
    """A frozen base model with adapters: runs, generates, merges and saves them."""

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | None = None,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
    ) -> None:
        super().__init__(model)
        self.__class__ = _with_signature(type(self), type(model))  # pyright: ignore
        if peft_config is not None:
            self.add_adapter(adapter_name, peft_config)
            self.set_adapter(adapter_name)
            if not autocast_adapter_dtype:
                self.adapter(adapter_name).to(next(model.parameters()).dtype)

    # --- running --------------------------------------------------------------------------

    def route(self, adapter_names: Sequence | None, rows: int) -> tuple[list[int], list[RowGroup]]:
        """The order of rows and the row groups for `adapter_names` (None: the active adapters)."""
        if adapter_names is None:
            return list(range(rows)), [RowGroup(slice(0, rows), self.acting)]
        if len(adapter_names) != rows:
            raise ConfigError(
                f"{len(adapter_names)} adapter_names for {rows} rows; give one per row."
            )
        order, groups = group_rows(adapter_names, list(self.adapters))
        for name in self.merged_adapters:
            if any(name not in group.adapters for group in groups):
                raise MergeError(
                    f"{name!r} is merged into the base model, so rows without it cannot be had; "
                    "call unmerge_adapter() first."
                )
        return order, groups

    def has_virtual_tokens(self, groups: Sequence[RowGroup]) -> bool:
        """Whether rows of `groups` have a prompt or a prefix."""
        return any(self.adapters[n].virtual_tokens is not None for g in groups for n in g.adapters)

    def compose(self, groups: Sequence[RowGroup], text: int) -> Composition:
        """The composition of rows of `text` tokens under `groups` (see `adapt.compose`)."""
        virtual = {name: adapter.virtual_tokens for name, adapter in self.adapters.items()}
        prompts = {n: v for n, v in virtual.items() if isinstance(v, PromptAdapter)}
        prefixes = {n: v for n, v in virtual.items() if isinstance(v, PrefixAdapter)}
        assert self._composer is not None
        return self._composer.composition(groups, prompts, prefixes, text, self.router.drawing)

    @property
    def composed(self) -> Composition | None:
        """The composition of the forward under way; None: it has no virtual tokens."""
        return None if self._composer is None else self._composer.entry.batch

    def forward(
        self, *args: Any, adapter_names: Sequence[str | Sequence[str]] | None = None, **kwargs: Any
    ) -> Any:
        """The base model's forward with adapters.

        Args:
            *args: As the base model takes them.
            adapter_names: Per row the name of its adapter, several names, or `"__base__"`; None:
                the active adapters on all rows.
            **kwargs: As the base model takes them.

        Returns:
            The base model's output, in the shapes of the rows given: virtual tokens leave no
            trace in logits, hidden states and attentions.
        """
        named = zip(inspect.signature(self.base_model.forward).parameters, args, strict=False)
        inputs = {**dict(named), **kwargs}
        read = [inputs.get("input_ids"), inputs.get("inputs_embeds"), *inputs.values()]
        first = next((v for v in read if isinstance(v, torch.Tensor)), None)
        if first is None:
            raise ConfigError("forward() needs at least one tensor, such as input_ids.")
        rows = first.shape[0]
        order, groups = self.route(adapter_names, rows)
        sort = order != sorted(order)
        if sort:
            inputs = {
                name: value if name in _OF_COLUMNS else in_group_order(value, order, rows)
                for name, value in inputs.items()
            }
        outputs = self._run(groups, inputs)
        return in_row_order(outputs, order, inputs) if sort else outputs

    def _run(self, groups: Sequence[RowGroup], inputs: dict[str, Any]) -> Any:
        if self.training and torch.is_grad_enabled():
            route_recomputation(self.base_model, self.router)
        with self.router.use(groups):
            if not self.has_virtual_tokens(groups):
                return self.base_model(**inputs)
            composer = self._composer
            assert composer is not None
            shown = inputs.get("input_ids")
            shown = inputs.get("inputs_embeds") if shown is None else shown
            if shown is None:
                raise ConfigError("Virtual tokens need input_ids or inputs_embeds.")
            batch = self.compose(groups, shown.shape[1])
            arguments = {**composer.forward_inputs(batch, inputs), "return_dict": True}
            with composer.entering(batch, inputs):
                outputs = self.base_model(**arguments)
        same_ids = composer.decoder_ids(inputs) is None
        outputs = without_virtual_tokens(outputs, batch, composer.encoder_decoder, same_ids)
        outputs = span_loss(outputs, inputs)
        return outputs.to_tuple() if inputs.get("return_dict") is False else outputs

    def generate(
        self, *args: Any, adapter_names: Sequence[str | Sequence[str]] | None = None, **kwargs: Any
    ) -> Any:
        """The base model's `generate` with adapters; `adapter_names` as in `forward`."""
        return generation.generate(self, self._composer, args, adapter_names, kwargs)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Turn on gradient checkpointing, for every method and any mix of adapters.

        Args:
            gradient_checkpointing_kwargs: For `torch.utils.checkpoint`. `use_reentrant` is always
                False: the routing of a forward has to reach its recomputation.
        """
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """transformers' newer name of `gradient_checkpointing_enable`; `kwargs` are its own."""
        options = {**(activation_checkpointing_kwargs or {}), "use_reentrant": False}
        base: Any = self.base_model
        asked = getattr(base, "_require_grads_hooks", None)
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=options, **kwargs)
        if not asked:
            # Only reentrant checkpoints need inputs with a gradient; here the backward pass would
            # go on below the lowest adapted layer.
            base.disable_input_require_grads()

    # --- merging --------------------------------------------------------------------------

    def merge_adapter(self, adapter_names: Sequence[str] | None = None) -> None:
        """Fold adapters (the active ones) into the base model's weights until `unmerge_adapter`.

        What is merged acts before what is active, and whatever is active.
        """
        merge.merge(self, self._require(self._active if adapter_names is None else adapter_names))

    def unmerge_adapter(self) -> None:
        """Put the base model's own weights back, bit for bit."""
        merge.unmerge(self)

    def merge_and_unload(self, adapter_names: Sequence[str] | None = None) -> nn.Module:
        """Fold adapters into the weights and return the plain base model.

        Raises:
            MergeError: For methods with virtual tokens, and for biases that the base model's
                class has no place for.
        """
        names = self._require(self._active if adapter_names is None else adapter_names)
        return merge.merge_and_unload(self, names)

    def unload(self) -> nn.Module:
        """Remove all adapters and return the base model as it was."""
        merge.unmerge(self)
        for name in list(self.adapters):
            self.delete_adapter(name)
        if self._composer is not None:
            self._composer.entry.detach()
            self._composer = None
        return self.base_model

    # --- files ----------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | Path,
        selected_adapters: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write adapters as PEFT does: `default` into the folder, others into folders below.

        Args:
            save_directory: The folder.
            selected_adapters: Names; None: all.
            **kwargs: PEFT's `is_main_process`. `safe_serialization` can only be True, and
                `save_embedding_layers` changes nothing: base weights are never copied.

        Raises:
            ConfigError: For an argument that does not exist, or an adapter.
        """
        for argument in kwargs:
            if argument not in _SAVING:
                hint = did_you_mean(argument, ("selected_adapters", *_SAVING))
                raise ConfigError(f"save_pretrained has no argument {argument!r}.{hint}")
        if kwargs.get("safe_serialization") is False:
            raise ConfigError(
                "Adapters are written as safetensors only; leave safe_serialization out."
            )
        if not kwargs.get("is_main_process", True):
            return
        for name in self._require(
            list(self.adapters) if selected_adapters is None else selected_adapters
        ):
            folder = Path(save_directory) / ("" if name == "default" else name)
            checkpoint.save(self.adapter(name), folder)

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        **hub: Any,
    ) -> None:
        """Attach an adapter from a folder or hub repository of PEFT's format.

        Args:
            model_id: Folder, or id on the hub.
            adapter_name: The name it gets here.
            is_trainable: Whether it shall go on learning.
            **hub: `revision`, `subfolder`, `cache_dir`, `token`. PEFT's arguments about where the
                tensors go are taken and change nothing: an adapter is where its layers are.

        Raises:
            ConfigError: For an argument that does not exist.
            CheckpointError: If any tensor has no home, any parameter no tensor, or a shape differs.
        """
        checkpoint.load(self, model_id, adapter_name, is_trainable, hub)
        if not is_trainable and (self.training or self.base_model.training):
            self.eval()  # as PEFT does: no dropout where nothing learns
        if not self._active:
            self.set_adapter(adapter_name)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        **hub: Any,
    ) -> Self:
        """`model` with the adapter at `model_id`; see `load_adapter`."""
        wrapped = cls(model)
        wrapped.load_adapter(model_id, adapter_name, is_trainable, **hub)
        return wrapped

    # --- the rest of PEFT's names ---------------------------------------------------------

    def get_base_model(self) -> nn.Module:
        return self.base_model

    def task_type(self) -> TaskType | None:
        """The task of the first active adapter."""
        return self.active_peft_config.task_type

    def get_prompt(self, batch_size: int = 1, adapter_name: str | None = None) -> torch.Tensor:
        """The virtual tokens of one adapter for a batch.

        Returns:
            [B, N, D] for a prompt; for a prefix [L, 2, B, H, N, K].
        """
        name = adapter_name or self._one_active()
        virtual = self.adapter(name).virtual_tokens
        if isinstance(virtual, PromptAdapter):
            return virtual.embeddings().expand(batch_size, -1, -1)
        if isinstance(virtual, PrefixAdapter):
            return virtual.key_values()[:, :, None].expand(-1, -1, batch_size, -1, -1, -1)
        raise ConfigError(f"{name!r} has no virtual tokens.")

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Write the model card of the active adapter, `README.md`, into `output_dir`."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        card = checkpoint.model_card(self.active_peft_config)
        write_text(Path(output_dir) / "README.md", card)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Save all adapters and upload them to `repo_id` on the Hugging Face hub.

        Args:
            repo_id: `ORG/NAME`; made if it is not there.
            **kwargs: `huggingface_hub.upload_folder`'s (`commit_message`, `token`, ...), and
                `private` for a new repository.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=kwargs.pop("token", None))
        api.create_repo(repo_id, private=kwargs.pop("private", None), exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return api.upload_folder(repo_id=repo_id, folder_path=folder, **kwargs)


@functools.cache
def _with_signature(own: type[PeftModel], base: type[nn.Module]) -> type[PeftModel]:
    """`own` with the signature of the base model's forward.

    Trainers read off the signature which columns of a data set the model takes, and off the
    class's name what its labels are called.
    """
    if own is not PeftModel:
        return own
    given = inspect.signature(base.forward)
    extra = inspect.signature(own.forward).parameters["adapter_names"]
    kept = [p for p in given.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    rest = [p for p in given.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]

    def forward(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        return own.forward(self, *args, **kwargs)

    forward.__doc__ = own.forward.__doc__
    forward.__signature__ = given.replace(parameters=[*kept, extra, *rest])  # pyright: ignore
    return type(f"{own.__name__}For{base.__name__}", (own,), {"forward": forward})
