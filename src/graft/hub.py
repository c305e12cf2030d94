"""Base models and tokenizers: from a folder, the Hugging Face hub or ModelScope.

Code that comes with a model is never run. Weights are safetensors, or a `.bin` that transformers
reads without unpickling objects, where there is nothing else.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from graft.config import TaskType
from graft.download import (
    CONFIG_NAME,
    LABELS_NAME,
    HubAddress,
    Part,
    hub_address,
    is_adapter,
    lack_of_safetensors,
    local_folder,
    make_plan,
    model_files,
    read_object,
    require_whole,
    unsafe_weights,
)
from graft.errors import CheckpointError, nearest

__all__ = [
    "LABELS_NAME",
    "load_config",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "make_skeleton",
    "positions_of",
    "resolve",
    "saved_label_names",
    "task_of",
]


_LOG = logging.getLogger("graft")

_AUTO_CLASSES = {
    TaskType.CAUSAL_LM: transformers.AutoModelForCausalLM,
    TaskType.SEQ_CLS: transformers.AutoModelForSequenceClassification,
    TaskType.SEQ_2_SEQ_LM: transformers.AutoModelForSeq2SeqLM,
    TaskType.TOKEN_CLS: transformers.AutoModelForTokenClassification,
    TaskType.QUESTION_ANS: transformers.AutoModelForQuestionAnswering,
    TaskType.FEATURE_EXTRACTION: transformers.AutoModel,
}
# The end of an architecture's name -> what its head is for.
_TASKS = {
    "ForCausalLM": TaskType.CAUSAL_LM,
    "LMHeadModel": TaskType.CAUSAL_LM,
    "ForConditionalGeneration": TaskType.SEQ_2_SEQ_LM,
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForTokenClassification": TaskType.TOKEN_CLS,
    "ForQuestionAnswering": TaskType.QUESTION_ANS,
}
_TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "*.spm", "bpe.codes")
# What transformers raises where a config does not describe a model.
_UNFIT = (ValueError, KeyError, TypeError, AttributeError, RuntimeError)
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def resolve(source: str, revision: str | None = None, part: Part = "model") -> str:
    """The folder here that holds the base model `source`, downloaded where it lies on a hub.

    Args:
        source: A folder, `ORG/NAME` or `hf:ORG/NAME` on Hugging Face, `ms:ORG/NAME` on ModelScope.
        revision: Branch, tag or commit on the hub.
        part: What is needed: the `config`, the `tokenizer` too, or the whole `model`.

    Raises:
        ConfigError: No such folder or id, or a hub that does not give it.
        CheckpointError: No base model there, or one without weights.
    """
    folder = local_folder(source)
    if folder is None:
        folder = _from_hub(hub_address(source), revision, part)
    _check_folder(folder, part)
    return str(folder)


def load_model(
    source: str,
    task_type: TaskType,
    label_names: list[str] | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> PreTrainedModel:
    """Load a base model with the head of its task.

    Args:
        source: As in `resolve`.
        task_type: Decides the head.
        label_names: Names of the classes, for SEQ_CLS and TOKEN_CLS.
        dtype: Of the weights; None takes that of the files.
        revision: As in `resolve`.

    Returns:
        The model. Its `new_parameters` are the names of those that are in no file, such as a new
        head's: random numbers, the same at each load.

    Raises:
        ConfigError: No such model.
        CheckpointError: A model that is broken, or has no weights for what it is to do.
    """
    options: dict[str, Any] = {"dtype": dtype or "auto"}
    if label_names is not None:
        options["id2label"] = dict(enumerate(label_names))
        options["label2id"] = {name: index for index, name in enumerate(label_names)}
        options["ignore_mismatched_sizes"] = True  # a head for other labels is made anew
    where = resolve(source, revision)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what no file holds must be the same for a resume, and in use
            model, info = _AUTO_CLASSES[task_type].from_pretrained(
                where, trust_remote_code=False, output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        _check_head(source, load_config(where), task_type)
        raise _unreadable(source, f"a base model for {task_type}", error) from None
    model.name_or_path = source.removeprefix("hf:")  # what an adapter names as its base
    misfits = {entry[0]: entry[1:] for entry in info["mismatched_keys"]}
    _check_misfits(source, model, misfits)
    _check_missing(source, model, sorted(info["missing_keys"] - misfits.keys()), task_type)
    model.new_parameters = info["missing_keys"] | misfits.keys()
    if task_type is TaskType.SEQ_CLS and model.config.get_text_config().pad_token_id is None:
        # A decoder classifies by the last token that is no padding; the collator pads the same.
        tokenizer = load_tokenizer(source, revision)
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        model.config.get_text_config().pad_token_id = next(i for i in ids if i is not None)
    return model


def load_config(source: str, revision: str | None = None) -> PreTrainedConfig:
    """The config of a base model, whose weights need not be there.

    Raises:
        ConfigError: No such model.
        CheckpointError: No config there, or a broken one.
    """
    where = resolve(source, revision, "config")
    try:
        return AutoConfig.from_pretrained(where, trust_remote_code=False)
    except StrictDataclassError as error:  # its last line says which field, and why
        reason = str(error).strip().rpartition("\n")[2].partition(": ")[2]
        raise CheckpointError(f"The config.json of {source} cannot be used: {reason}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(source, "a base model's config", error) from None


def load_skeleton(
    source: str, task_type: TaskType | None = None, revision: str | None = None
) -> PreTrainedModel:
    """A base model made from its config alone: every tensor on the meta device, no memory.

    Args:
        source: As in `resolve`; weights need not be there.
        task_type: Decides the head; None takes the one that the config names.
        revision: As in `resolve`.

    Raises:
        ConfigError: No such model.
        CheckpointError: A config from which no such model can be made.
    """
    model = make_skeleton(load_config(source, revision), task_type, source)
    model.name_or_path = source
    return model


def make_skeleton(
    config: PreTrainedConfig,
    task_type: TaskType | None = None,
    source: str = "the model",
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """The base model of a config: every tensor on the meta device, no memory.

    Args:
        config: Its config.
        task_type: As in `load_skeleton`.
        source: Where the config is from, to be named in errors.
        dtype: Of the weights; None takes that of the config.

    Raises:
        CheckpointError: A config from which no such model can be made.
    """
    options = {} if dtype is None else {"dtype": dtype}
    task = task_type or task_of(config)
    try:
        with torch.device("meta"):
            return _made(config, task_type, options)
    except (*_UNFIT, ImportError) as error:  # some need a package of their own
        _check_head(source, config, task)
        raise _unreadable(source, f"a base model for {task}", error) from None


def _made(
    config: PreTrainedConfig, task_type: TaskType | None, options: dict[str, torch.dtype]
) -> PreTrainedModel:
    """The model of `config`; where no task was asked for, and none has it, the class it names."""
    auto_class = _AUTO_CLASSES[task_type or task_of(config)]
    named = getattr(transformers, (config.architectures or [""])[0], object)
    try:
        return auto_class.from_config(config, trust_remote_code=False, **options)
    except ValueError:
        if task_type is not None or not issubclass(named, PreTrainedModel):
            raise
        model: Any = named(config)  # such as Whisper
        return model.to(options.get("dtype") or config.dtype or torch.float32)


def task_of(config: PreTrainedConfig, architecture: str | None = None) -> TaskType:
    """What the head is for that an architecture names, the config's by default.

    A bare model has none: FEATURE_EXTRACTION.
    """
    name = architecture or (config.architectures or [""])[0]
    task = next((t for end, t in _TASKS.items() if name.endswith(end)), TaskType.FEATURE_EXTRACTION)
    if task is TaskType.SEQ_2_SEQ_LM and not config.is_encoder_decoder:
        return TaskType.CAUSAL_LM  # a decoder that is given images as well
    return task


def positions_of(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the base model with this config and tokenizer can read."""
    own = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or -1
    known = (tokenizer.model_max_length, own)
    return min(limit for limit in known if limit > 0)  # XLNet's own is -1: it has no end


def load_tokenizer(
    source: str, revision: str | None = None, **options: Any
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model, or the one that lies beside an adapter or alone.

    Args:
        source: As in `resolve`.
        revision: As in `resolve`.
        **options: Of transformers' `AutoTokenizer.from_pretrained`; code is never run.

    Raises:
        ConfigError: No such model.
        CheckpointError: No tokenizer there, or a broken one.
    """
    folder = Path(source).expanduser()
    there = any((folder / name).is_file() for name in (CONFIG_NAME, "tokenizer.json"))
    where = str(folder) if there else resolve(source, revision, "tokenizer")
    if not any(path for pattern in _TOKENIZERS for path in Path(where).glob(pattern)):
        raise CheckpointError(
            f"{source} has no tokenizer: expected tokenizer.json (or tokenizer.model, vocab.txt, "
            "vocab.json with merges.txt) beside its config.json; save the one that the model was "
            "trained with there (`tokenizer.save_pretrained`)."
        )
    try:
        return AutoTokenizer.from_pretrained(where, **{**options, "trust_remote_code": False})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(source, "a tokenizer", error) from None


def saved_label_names(folder: Path) -> list[str] | None:
    """The names of the classes that lie beside the adapter in `folder`; None where none do."""
    labels = folder / LABELS_NAME
    return json.loads(labels.read_text(encoding="utf-8")) if labels.is_file() else None


def _check_folder(folder: Path, part: Part) -> None:
    if (folder / CONFIG_NAME).is_file() and not (folder / "config.json").is_file():
        base = json.loads((folder / CONFIG_NAME).read_text()).get("base_model_name_or_path")
        raise CheckpointError(f"{folder} is an adapter, not a base model; its base is {base}.")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no base model: it has no config.json.")
    _check_config(folder / "config.json")
    if part != "model":
        return
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise CheckpointError(
            f"{folder} has no weights: expected model.safetensors (or model-*.safetensors, "
            "pytorch_model.bin)."
        )
    for path in sorted(folder.glob("*.safetensors")):
        require_whole(path)
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        shards = set(read_object(index).get("weight_map", {}).values())
        lacking = sorted(shard for shard in shards if not (folder / shard).is_file())
        if lacking:
            raise CheckpointError(
                f"{folder} lacks {lacking[0]}{_and_more(lacking)} that its index names: the "
                "download was cut short; fetch it again."
            )


def _check_config(path: Path) -> None:
    """Raise a CheckpointError unless transformers has a class for the model of a config.json."""
    config = read_object(path)
    kind = config.get("model_type")
    if "auto_map" in config and kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{path.parent} brings code of its own, which graft does not run, and transformers "
            f"{transformers.__version__} has no class for its model type {kind!r}."
        )
    if kind and kind not in CONFIG_MAPPING:
        near = nearest(str(kind), CONFIG_MAPPING, 1)
        raise CheckpointError(
            f"{path} names the model type {kind!r}, which transformers {transformers.__version__} "
            f"does not know: {f'did you mean {near[0]}?' if near else 'a newer one may.'}"
        )


def _from_hub(address: HubAddress, revision: str | None, part: Part) -> Path:
    plan = make_plan(address, lambda listing: model_files(listing, part), revision=revision)
    if not any(file.path == "config.json" for file in plan.files):
        what = "an adapter, not a base model" if is_adapter(plan.listing) else "no base model"
        raise CheckpointError(f"{address} is {what}: it has no config.json.")
    lack = lack_of_safetensors(plan.listing, address) if part == "model" else None
    if lack:
        unsafe = unsafe_weights(plan.listing)
        if not unsafe or plan.changed(unsafe).missing:
            raise CheckpointError(lack)  # unless they were asked for before
    return plan.fetch()


def _check_head(source: str, config: PreTrainedConfig, task_type: TaskType) -> None:
    """Not every architecture has a head for every task."""
    there = [task for task, auto in _AUTO_CLASSES.items() if type(config) in auto._model_mapping]
    if task_type in there:
        return
    others = f"; it can be loaded for {', '.join(there)}" if there else ""
    raise CheckpointError(
        f"{source} is a {config.model_type}, which transformers does not have for {task_type}"
        f"{others}."
    )


def _check_misfits(source: str, model: PreTrainedModel, misfits: dict[str, Any]) -> None:
    """A head may be of another size, as it is trained anew; nothing else may."""
    for name, shapes in misfits.items():
        if name.startswith(f"{model.base_model_prefix}."):
            there, wanted = (tuple(shape) for shape in shapes)
            raise CheckpointError(
                f"{source} has {name} of shape {there}, its config says {wanted}; the folder is "
                "broken, or mixes files of two models."
            )


def _check_missing(
    source: str, model: PreTrainedModel, missing: list[str], task_type: TaskType
) -> None:
    """Random weights are fine in a new head that is trained, and nowhere else."""
    if missing and task_type in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM):
        raise CheckpointError(
            f"{source} has no weights for {missing[0]}{_and_more(missing)}; it is no {task_type} "
            "model."
        )
    frozen = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
    if frozen:
        _LOG.warning(
            "%s has no weights for %s%s, which stays random, the same at each load.",
            source,
            frozen[0],
            _and_more(frozen),
        )


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _unreadable(source: str, what: str, error: Exception) -> CheckpointError:
    if "trust_remote_code" in str(error):
        return CheckpointError(f"{source} brings code of its own, which graft does not run.")
    if "model_type" in str(error):
        return CheckpointError(f"The config.json of {source} names no model_type.")
    reason = str(error).strip().partition("\n")[0]
    return CheckpointError(f"{source} cannot be read as {what}: {type(error).__name__}: {reason}")
