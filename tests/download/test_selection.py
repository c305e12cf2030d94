"""Which files are fetched unasked, on the listings of repositories as they are on the hubs."""

from __future__ import annotations

import pytest

from graft.download import HubAddress, Listing, RepoFile, lack_of_safetensors, model_files
from graft.download.selection import default_files, matching, require_matches, unsafe_weights
from graft.errors import ConfigError

ADDRESS = HubAddress("hf", "org/name")


def listing(*paths: str) -> Listing:
    files = tuple(RepoFile(path, 100, "") for path in paths)
    return Listing("org/name", "model", "main", "0" * 40, files)


def paths(files) -> set[str]:
    return {file.path for file in files}


# fmt: off
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
REPOSITORIES = [
    # A sharded decoder with a second copy of its weights, code, and other formats.
    ({"config.json", "generation_config.json", "model-00001-of-00002.safetensors",
      "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model",
      "chat_template.jinja", "additional_chat_templates/tool.jinja", "README.md", "LICENSE.txt",
      *TOKENIZER},
     {"consolidated.safetensors", "original/consolidated.00.pth", "original/params.json",
      "modeling_name.py", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json",
      "name-q4.gguf", ".gitattributes", "params.json", "model.fp16.safetensors"}),
    # A BERT in every format that there is.
    ({"config.json", "model.safetensors", "vocab.txt", *TOKENIZER},
     {"pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
      "coreml/model.mlmodel", "model-00001-of-00002.safetensors", "model.safetensors.index.json"}),
    # A BPE of two files, one of sentencepiece.
    ({"config.json", "model.safetensors", "vocab.json", "merges.txt", "added_tokens.json",
      "spiece.model", "chat_template.json"}, {"training_args.bin", "optimizer.pt"}),
    # An adapter and its checkpoints.
    ({"adapter_config.json", "adapter_model.safetensors", "README.md", *TOKENIZER},
     {"checkpoint-10/adapter_config.json", "checkpoint-10/adapter_model.safetensors",
      "training_args.bin"}),
]
# fmt: on


@pytest.mark.parametrize(("wanted", "left"), REPOSITORIES)
def test_what_is_fetched_unasked(wanted, left):
    assert paths(default_files(listing(*wanted, *left))) == wanted


def test_no_more_than_the_part_that_is_needed():
    wanted, left = REPOSITORIES[0]
    repository = listing(*wanted, *left)
    assert paths(model_files(repository, "config")) == {"config.json"}
    weights = {path for path in wanted if "safetensors" in path}
    about = {"README.md", "LICENSE.txt"}
    assert paths(model_files(repository, "tokenizer")) == wanted - weights - about
    assert paths(model_files(repository)) == wanted - about


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["pytorch_model.bin"], "only pytorch_model.bin (100 bytes): fetch it with `graft download "
         "hf:org/name --include 'pytorch_model*'`"),
        (["name-q4.gguf"], "expected model.safetensors, only name-q4.gguf"),
        ([], "no weights that graft loads: expected model.safetensors."),
    ],
)  # fmt: skip
def test_a_repository_without_safetensors(paths, said):
    assert said in str(lack_of_safetensors(listing("config.json", *paths), ADDRESS))
    assert lack_of_safetensors(listing("model.safetensors", *paths), ADDRESS) is None
    assert len(unsafe_weights(listing(*paths))) == ("pytorch_model.bin" in paths)


def test_patterns_cross_folders_and_must_hit():
    repository = listing("a.jsonl", "data/en/b.jsonl", "data/c.csv")
    assert paths(matching(repository, ["*.jsonl"])) == {"a.jsonl", "data/en/b.jsonl"}
    with pytest.raises(ConfigError, match=r"No file of org/name is like 'data/d.csv'.*data/c.csv"):
        require_matches(repository, ["*.csv", "data/d.csv"])
