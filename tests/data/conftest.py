"""Small real tokenizers of the kinds that people's models have, and a writer of files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXT = [
    "The cat sat on the mat, and the dog looked at the cat.",
    "Name three colours.\n\nRed, green and blue are three colours.\n\n\nAnd so on.",
    "### Instruction:\nWrite a word.\n\n### Response:\nword",
    "user\nsystem\nassistant\n 1 2 3 4 5 6 7 8 9 0 + - = ? !",
    "你好，世界。请写一首诗。",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _wrap(core: Tokenizer, **special: Any) -> PreTrainedTokenizerBase:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **special}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **names
    )


def _begin_with_bos(core: Tokenizer) -> None:
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A",
        pair="<s> $A <s> $B",
        special_tokens=[("<s>", core.token_to_id("<s>"))],
    )


def _byte_level_core() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    return core


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerBase:
    """As GPT-2's: no BOS in front, no chat template, no pad token."""
    return _wrap(_byte_level_core())


@pytest.fixture(scope="session")
def with_bos() -> PreTrainedTokenizerBase:
    """As Llama 3's base model: BOS in front, no chat template."""
    core = _byte_level_core()
    _begin_with_bos(core)
    return _wrap(core)


@pytest.fixture(scope="session")
def chatml() -> PreTrainedTokenizerBase:
    """As Qwen's: a chat template, whose end of a turn is not the end of the text."""
    tokenizer = _wrap(_byte_level_core())
    tokenizer.chat_template = CHATML
    return tokenizer


def _sentencepiece_model(normalizer: normalizers.Normalizer | None) -> Tokenizer:
    """BPE over words that begin with "▁", bytes for unknown characters."""
    core = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(["▁" + word for line in TEXT for word in line.split()], trainer)
    learned = json.loads(core.to_str())["model"]
    vocabulary = learned["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    core.model = models.BPE(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    if normalizer is not None:
        core.normalizer = normalizer
    _begin_with_bos(core)
    return core


@pytest.fixture(scope="session")
def prepended() -> PreTrainedTokenizerBase:
    """As Llama 2's: a space in front of every text and after every special token, BOS."""
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return _wrap(_sentencepiece_model(normalizers.Sequence(steps)))


@pytest.fixture(scope="session")
def metaspace() -> PreTrainedTokenizerBase:
    """As Mistral's: a space in front of the first word only, BOS."""
    core = _sentencepiece_model(None)
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _wrap(core)


@pytest.fixture(scope="session")
def wordpiece() -> PreTrainedTokenizerBase:
    """As BERT's: [CLS] text [SEP] pair [SEP], token types, a pad token."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=200, special_tokens=names, show_progress=False)
    )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes rows into a file of lines of JSON and returns its path."""

    def write(rows: list[Any], name: str = "data.jsonl") -> str:
        path = tmp_path / name
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write
