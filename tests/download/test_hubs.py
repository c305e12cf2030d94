"""Both hubs through their real clients: what is fetched, resumed, refused, and how that is said."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from graft.download import HubAddress, Plan, Unreachable, make_plan, plan_dataset
from graft.download.selection import default_files
from graft.errors import CheckpointError, ConfigError
from hubs import LoopbackHub

LARGE = 20 << 20  # bytes; what both clients continue where they were cut off
NAME = "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    NAME: b"\x08" + bytes(7) + b'{"a":{}}' + bytes(100),
    "modeling.py": b"print('this runs')",
    "pytorch_model.bin": b"pickled",
}
WANTED = {"config.json", "tokenizer.json", NAME}


@dataclass
class Side:
    """One of the hubs, with the words that it is known by."""

    hub: LoopbackHub
    prefix: str
    variable: str
    title: str

    def plan(self, name: str = "org/name", **rest) -> Plan:
        return make_plan(HubAddress(self.prefix, name), default_files, **rest)

    def rows(self, name: str, patterns: list[str] | None = None) -> Path:
        return plan_dataset(HubAddress(self.prefix, name), patterns=patterns).fetch()

    @property
    def bodies(self) -> list[str]:
        """Files of which anything was sent."""
        return sorted(path for path, count in self.hub.served.items() if count)


@pytest.fixture(params=["hugging_face", "modelscope"])
def side(request) -> Side:
    hub = request.getfixturevalue(request.param)
    words = {
        "hugging_face": ("hf", "HF_ENDPOINT", "Hugging Face"),
        "modelscope": ("ms", "MODELSCOPE_ENDPOINT", "ModelScope"),
    }
    return Side(hub, *words[request.param])


def test_whole_then_nothing_is_missing(side):
    side.hub.add("org/name", FILES)
    plan = side.plan()
    assert {file.path for file in plan.files} == WANTED
    assert plan.missing == plan.files
    assert plan.bytes_missing == sum(len(FILES[path]) for path in WANTED)
    folder = plan.fetch()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == {
        path: FILES[path] for path in WANTED
    }
    assert side.bodies == sorted(WANTED)
    side.hub.served.clear()
    again = side.plan()
    assert not again.missing
    assert again.fetch() == folder
    assert not side.bodies


def test_only_what_is_missing_is_fetched(side):
    side.hub.add("org/name", FILES)
    folder = side.plan().fetch()
    (folder / "tokenizer.json").unlink()
    side.hub.served.clear()
    plan = side.plan()
    assert [file.path for file in plan.missing] == ["tokenizer.json"]
    plan.fetch()
    assert (folder / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]
    assert set(side.bodies) <= {"tokenizer.json"}  # Hugging Face's cache still has it


def test_what_changed_on_the_hub_is_fetched_anew(side):
    side.hub.add("org/name", FILES)
    side.plan().fetch()
    changed = {**FILES, "config.json": FILES["config.json"].replace(b"llama", b"qwen3")}
    side.hub.add("org/name", changed)
    folder = side.plan().fetch()
    assert (folder / "config.json").read_bytes() == changed["config.json"]


def test_a_connection_that_breaks_off_is_taken_up_again(side, tmp_path):
    content = os.urandom(LARGE)
    side.hub.add("org/name", {**FILES, NAME: content})
    side.hub.faults.cut_at = LARGE - (2 << 20)
    folder = side.plan(cache_dir=tmp_path / "elsewhere").fetch()
    assert (folder / NAME).read_bytes() == content
    assert folder.is_relative_to(tmp_path / "elsewhere")
    starts = [r.headers["range"] for r in side.hub.requests if "range" in r.headers]
    assert len(set(starts)) == 1
    assert side.hub.served[NAME] < LARGE + (10 << 20)  # at most one piece of the client's twice


def test_after_ctrl_c_the_next_call_goes_on(side, tmp_path):
    """As a user does: the command is stopped in the middle of a file, and run again."""
    content = os.urandom(LARGE)
    side.hub.add("org/name", {**FILES, NAME: content})
    side.hub.faults.stall_at = LARGE - (2 << 20)
    environment = {
        **os.environ,
        side.variable: side.hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "MODELSCOPE_HOME": str(tmp_path / "home"),
    }
    words = ["download", f"{side.prefix}:org/name", "--cache-dir", str(tmp_path / "cache")]
    command = subprocess.Popen(
        [sys.executable, "-m", "graft.cli", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job passes on that it ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert side.hub.faults.stalled.wait(60)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert err == "graft: stopped; what has arrived is kept, run the same to go on.\n"
    assert "to fetch: 3 files, 20.00 MiB" in out
    side.hub.faults.stall_at = None
    side.hub.faults.go_on.set()
    side.hub.served.clear()
    plan = side.plan(cache_dir=tmp_path / "cache")
    assert NAME in {file.path for file in plan.missing}
    left = plan.bytes_missing
    assert 0 < left < LARGE - (8 << 20)
    folder = plan.fetch()
    assert (folder / NAME).read_bytes() == content
    # What had been written of the file was not asked for again.
    assert 0 < side.hub.served[NAME] <= left


@pytest.mark.parametrize(
    ("refuses", "said"),
    [
        (401, {"hf": "hf auth login", "ms": "log in with `modelscope login`"}),
        (403, {"hf": "licence to be accepted", "ms": "its terms must be accepted"}),
        (429, {"hf": "asked too often", "ms": "asked too often"}),
        (404, {"hf": "There is no model org/name", "ms": "There is no model org/name"}),
    ],
)
def test_a_repository_that_is_refused(side, refuses, said):
    side.hub.add("org/name", FILES, refuses=refuses)
    with pytest.raises(ConfigError) as error:
        side.plan()
    assert said[side.prefix] in str(error.value)
    assert "org/name" in str(error.value) or refuses == 429


def test_a_name_that_is_not_there(side):
    with pytest.raises(ConfigError, match=f"There is no model org/nome on {side.title}"):
        side.plan("org/nome")
    side.hub.add("org/rows", {"a.jsonl": b"{}"}, kind="dataset")
    with pytest.raises(ConfigError, match=r"org/rows on .* is a data set, not a model"):
        side.plan("org/rows")
    side.hub.add("org/name", FILES)
    with pytest.raises(ConfigError, match=r"org/name on .* is a model, not a data set"):
        side.rows("org/name")


def test_a_revision_that_is_not_there(side):
    side.hub.add("org/name", FILES, revisions=[side.hub.default_revision, "v1.0"])
    assert side.plan(revision="v1.0").fetch().is_dir()
    with pytest.raises(ConfigError, match=r"no revision 'v1\.1' on .*Did you mean v1\.0"):
        side.plan(revision="v1.1")


def test_a_file_that_is_listed_but_not_there(side):
    side.hub.add("org/name", FILES)
    side.hub.faults.lacking = {"tokenizer.json"}
    with pytest.raises(ConfigError, match=r"lists tokenizer\.json, but has it not"):
        side.plan().fetch()


@pytest.mark.parametrize("content", [FILES[NAME], bytes(LARGE)], ids=["small", "large"])
@pytest.mark.parametrize("more", [-5, 5])
def test_another_size_than_listed(side, monkeypatch, content, more):
    if side.prefix == "ms":
        monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    side.hub.add("org/name", {**FILES, NAME: content})
    side.hub.faults.listed = {NAME: len(content) + more}
    with pytest.raises(
        CheckpointError, match=rf"{NAME}.* arrived with .*bytes .*lists.* run the same again"
    ):
        side.plan().fetch()
    side.hub.faults.listed = {}
    assert (side.plan().fetch() / NAME).read_bytes() == content


@pytest.mark.parametrize("content", [FILES[NAME], bytes(LARGE)], ids=["small", "large"])
def test_content_that_is_damaged_on_the_way(side, monkeypatch, content):
    if side.prefix == "ms":
        monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    side.hub.add("org/name", {**FILES, NAME: content})
    side.hub.faults.damaged = {NAME}
    with pytest.raises(CheckpointError, match=rf"{NAME}.* arrived .*[Rr]un the same again"):
        side.plan().fetch()
    side.hub.faults.damaged = set()
    assert (side.plan().fetch() / NAME).read_bytes() == content


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_out_of_order(side, status):
    side.hub.faults.status = status
    with pytest.raises(Unreachable, match=f"out of order: it answers {status}"):
        side.plan()
    assert len(side.hub.requests) <= 2


def test_a_hub_that_cannot_be_reached_but_for_the_cache(side, caplog):
    side.hub.add("org/name", FILES)
    folder = side.plan().fetch()
    side.hub.close()
    with pytest.raises(Unreachable, match=r"no folder org/other here, .* cannot be reached"):
        side.plan("org/other")
    with caplog.at_level(logging.WARNING, "graft"):
        assert side.plan().fetch() == folder
    (record,) = (record for record in caplog.records if record.name == "graft")
    assert f"{side.prefix}:org/name is taken from the cache" in record.getMessage()


def test_half_a_data_set_is_not_the_whole(side):
    """Without the hub, what an interruption left is not trained on."""
    rows = {f"part-{n}.jsonl": b"{}" for n in range(3)}
    side.hub.add("org/rows", rows, kind="dataset")
    side.rows("org/rows", ["part-[01]*"])
    side.hub.faults.lacking = {"part-2.jsonl"}
    with pytest.raises(ConfigError, match=r"lists part-2\.jsonl"):
        side.rows("org/rows")
    side.hub.close()
    with pytest.raises(Unreachable, match="cannot be reached"):
        side.rows("org/rows")
    side.rows("org/rows", ["part-[01]*"])  # which is all here


def test_what_others_have_downloaded_will_do(hugging_face):
    side = Side(hugging_face, "hf", "", "")
    side.hub.add("org/name", FILES)
    for path in WANTED:
        hf_hub_download("org/name", path)
    side.hub.close()
    assert {path.name for path in side.plan().fetch().iterdir()} == WANTED


def test_offline_the_cache_is_used_without_a_word(hugging_face, monkeypatch, caplog):
    side = Side(hugging_face, "hf", "", "")
    side.hub.add("org/name", FILES)
    folder = side.plan().fetch()
    side.hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert side.plan().fetch() == folder
    assert not [record for record in caplog.records if record.name == "graft"]
    with pytest.raises(Unreachable, match=r"org/other is not in the cache .*HF_HUB_OFFLINE is set"):
        side.plan("org/other")
    assert not side.hub.requests


def test_a_disk_without_room_is_seen_before(side, monkeypatch):
    side.hub.add("org/name", FILES)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 50, 50))
    with pytest.raises(
        ConfigError, match=r"needs .* more in .*, where 50 bytes are free: make room"
    ):
        side.plan().fetch()
    assert not side.bodies


def test_a_cache_that_cannot_be_written(side, tmp_path):
    side.hub.add("org/name", FILES)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/cache cannot be made: .*file is a file"):
        side.plan(cache_dir=tmp_path / "file" / "cache").fetch()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up(side, tmp_path):
    content = bytes(LARGE)
    side.hub.add("org/name", {**FILES, NAME: content})
    plan = side.plan(cache_dir=tmp_path)
    if side.prefix == "hf":
        digest = next(file.digest for file in plan.files if file.path == NAME)
        partial = tmp_path / "models--org--name" / "blobs" / f"{digest}.incomplete"
    else:
        partial = tmp_path / "models/org--name/snapshots/master" / f"{NAME}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=f"The disk of {tmp_path} is full: make room"):
        plan.fetch()


def test_a_token_opens_what_is_private_and_goes_nowhere_else(hugging_face):
    side = Side(hugging_face, "hf", "", "")
    side.hub.add("org/name", {**FILES, NAME: bytes(LARGE)}, token="secret")
    with pytest.raises(ConfigError, match="hf auth login"):
        side.plan()
    side.plan(token="secret").fetch()
    stored = [request for request in side.hub.requests if request.path.startswith("/cdn/")]
    assert stored
    assert not any("authorization" in request.headers for request in stored)


def test_modelscope_s_token_is_the_environment_s(modelscope, monkeypatch):
    side = Side(modelscope, "ms", "", "")
    side.hub.add("org/name", FILES, token="secret")
    with pytest.raises(ConfigError, match="MODELSCOPE_API_TOKEN"):
        side.plan()
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    side.plan().fetch()


def test_modelscope_is_told_no_number_that_follows_the_user(modelscope):
    side = Side(modelscope, "ms", "", "")
    side.hub.add("org/name", FILES)
    side.plan().fetch()
    agents = {request.headers["user-agent"] for request in side.hub.requests}
    assert all(f"session_id/{'0' * 32}" in agent for agent in agents)


def test_modelscope_s_old_variable_works(modelscope, monkeypatch):
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    monkeypatch.setenv("MODELSCOPE_DOMAIN", modelscope.endpoint)
    side = Side(modelscope, "ms", "", "")
    side.hub.add("org/name", FILES)
    assert side.plan().fetch().is_dir()


ROWS = {
    "README.md": b"---\nconfigs: []\n---\n",
    "data/train.jsonl": b'{"text": "a"}\n',
    "data/test.jsonl": b'{"text": "b"}\n',
    "images/cat.png": b"png",
}


def test_a_data_set(side):
    side.hub.add("org/rows", ROWS, kind="dataset")
    folder = side.rows("org/rows", ["README.md", "*train*"])
    assert side.bodies == ["README.md", "data/train.jsonl"]
    assert side.rows("org/rows") == folder
    for path in ("README.md", "data/train.jsonl", "data/test.jsonl"):
        assert (folder / path).read_bytes() == ROWS[path]
        assert side.hub.served[path] == len(ROWS[path])
    assert "images/cat.png" not in side.bodies
    with pytest.raises(ConfigError, match=r"No file of org/rows is like '\*\.parquet'"):
        side.rows("org/rows", ["*.parquet"])
    side.hub.add("org/pictures", {"cat.png": b"png"}, kind="dataset")
    with pytest.raises(ConfigError, match=r"org/pictures has no files of rows: expected .*jsonl"):
        side.rows("org/pictures")
