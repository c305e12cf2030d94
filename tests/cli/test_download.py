from __future__ import annotations

import json
from pathlib import Path

import pytest

from graft.hub import load_model

HUBS = [("hugging_face", "hf"), ("modelscope", "ms")]


@pytest.fixture
def files(base_folder) -> dict[str, bytes]:
    """A small model that works, with what else lies in many a repository."""
    files = {path.name: path.read_bytes() for path in base_folder.iterdir()}
    return {**files, "README.md": b"#", "pytorch_model.bin": b"pickled", "onnx/model.onnx": b"o"}


@pytest.mark.parametrize(("hub", "prefix"), HUBS)
def test_a_model(graft, request, files, capsys, hub, prefix):
    server = request.getfixturevalue(hub)
    server.add("org/name", files)
    assert graft("download", f"{prefix}:org/name") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{prefix}:org/name at {server.default_revision}")
    assert lines[0].endswith(f"from {server.endpoint}")
    assert (
        "not wanted: pytorch_model.bin, onnx/model.onnx (2 files, 8 bytes; --include, --all)"
        in lines
    )
    wanted = sum(len(content) for path, content in files.items() if ".bin" not in path) - 1
    assert any(
        line.startswith(f"to fetch: {len(files) - 2} files, {wanted / 1024:,.2f} KiB, into ")
        for line in lines
    )
    key, _, folder = lines[-1].partition(": ")
    assert key == "base_model"
    assert load_model(folder, "CAUSAL_LM").num_parameters() > 0
    assert graft("download", f"{prefix}:org/name") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "nothing to fetch" in lines
    assert lines[-1] == f"base_model: {folder}"


def test_what_is_asked_for_comes_too(graft, hugging_face, files, capsys):
    hugging_face.add("org/name", {**files, "modeling.py": b""})
    assert graft("download", "org/name", "--include", "*.bin") == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("base_model: "))
    assert (folder / "pytorch_model.bin").is_file()
    assert not (folder / "onnx").exists()
    assert graft("download", "org/name", "--all") == 0
    assert (folder / "onnx" / "model.onnx").is_file()
    assert not (folder / "modeling.py").exists()
    assert graft("download", "org/name", "--include", "*.oonx") == 2
    assert "No file of org/name is like '*.oonx'" in capsys.readouterr().err
    assert graft("download", "org/name", "--include", "modeling.py") == 2
    assert "fetch it with --trust-remote-code" in capsys.readouterr().err


def test_the_code_of_a_data_set_stays_unless_it_is_trusted(graft, hugging_face, capsys):
    hugging_face.add("org/rows", {"a.jsonl": b"{}\n", "load.py": b"1"}, kind="dataset")
    words = ["download", "org/rows", "--data", "--include", "*"]
    assert graft(*words) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("train: "))
    assert not (folder / "load.py").exists()
    assert graft(*words, "--trust-remote-code") == 0
    assert (folder / "load.py").read_bytes() == b"1"


@pytest.mark.parametrize(("hub", "prefix"), HUBS)
def test_code_is_said_to_be_there_and_not_fetched(graft, request, files, capsys, hub, prefix):
    config = {**json.loads(files["config.json"]), "auto_map": {"AutoConfig": "code.C"}}
    repository = {**files, "config.json": json.dumps(config).encode(), "code.py": b"1 / 0"}
    request.getfixturevalue(hub).add("org/name", repository)
    assert graft("download", f"{prefix}:org/name") == 0
    out = capsys.readouterr().out
    assert "brings code of its own" in out
    assert "it stays on the hub; graft does not run it" in out
    folder = Path(out.splitlines()[-1].removeprefix("base_model: "))
    assert not (folder / "code.py").exists()
    assert graft("download", f"{prefix}:org/name", "--trust-remote-code") == 0
    assert "it is fetched for you to read" in capsys.readouterr().out
    assert (folder / "code.py").is_file()


def test_a_model_without_safetensors(graft, hugging_face, files, capsys):
    del files["model.safetensors"]
    hugging_face.add("org/name", files)
    assert graft("download", "org/name") == 2
    said = capsys.readouterr().err
    assert "hf:org/name has no safetensors, only pytorch_model.bin (7 bytes)" in said
    words = said.partition("`graft ")[2].partition("`")[0].replace("'", "").split()
    assert graft(*words) == 0  # what it says to do


def test_another_hub_by_the_environment(graft, modelscope, files, monkeypatch, capsys):
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    modelscope.add("org/name", files)
    assert graft("download", "org/name") == 0
    assert capsys.readouterr().out.startswith("ms:org/name at master, from ")


@pytest.mark.parametrize(("hub", "prefix"), HUBS)
def test_a_data_set(graft, request, capsys, hub, prefix, tmp_path):
    rows = {f"part-{n:03}.jsonl": b'{"text": "a"}\n' for n in range(50)}
    request.getfixturevalue(hub).add("org/rows", rows, kind="dataset")
    words = ["download", f"{prefix}:org/rows", "--data", "--cache-dir", tmp_path / "here"]
    assert graft(*words, "--include", "part-01*") == 0
    out = capsys.readouterr().out
    assert "to fetch: 10 files, 140 bytes" in out
    assert graft(*words) == 0
    out = capsys.readouterr().out
    assert "and 10 more" in out
    assert "to fetch: 40 files" in out
    folder = Path(out.splitlines()[-1].removeprefix("train: "))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == rows
    assert folder.is_relative_to(tmp_path / "here")
    assert graft("download", f"{prefix}:org/rows") == 2
    assert "is a data set, not a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hf:org"], "There is no model org"),
        (["gs:org/name"], "gs: is no hub"),
        (["ms:name"], "ms:ORG/NAME"),
        (["org/name", "--revision", "mian"], "Did you mean main"),
        (["org/nome"], "There is no model org/nome on Hugging Face"),
    ],
)
def test_what_the_user_can_mend(graft, hugging_face, files, capsys, words, said):
    hugging_face.add("org/name", files)
    assert graft("download", *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
