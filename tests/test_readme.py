"""The README's code blocks do what they say, where they need no hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LANGUAGES = ["README.md", "README.zh.md"]
RECORD = "name = Leo; city = Bern; item = cup; colour = white; count = 9; day = Tue"


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(rf"(<!-- needs a hub -->\n)?```{language}\n(.*?)```", text, re.DOTALL)
    return [code for mark, code in found if not mark and "make demo" not in code]


def test_shell_blocks(tmp_path):
    (script,) = blocks(LANGUAGES[0], "bash")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # The doctor need not wait for hubs that a test cannot reach.
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "MODELSCOPE_ENDPOINT": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "orders" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "merged-orders" / "model.safetensors").is_file()
    assert RECORD in done.stdout  # of a note that no adapter has learned


@pytest.mark.parametrize("name", LANGUAGES)
def test_what_is_recorded_is_of_these_commands(name):
    (script,) = blocks(name, "bash")
    assert (script,) == tuple(blocks(LANGUAGES[0], "bash"))
    (recorded,) = blocks(name, "text")
    typed = re.findall(r"^[$>] (.*)$", recorded, re.MULTILINE)
    assert "\n".join(typed) == script.rstrip("\n")
    assert RECORD in recorded


@pytest.mark.parametrize("name", LANGUAGES)
def test_python_blocks(name, capsys):
    (code,) = blocks(name, "python")
    names: dict = {}
    exec(compile(code, name, "exec"), names)
    assert "trainable params:" in capsys.readouterr().out
    assert names["model"].active_adapters == ["default"]


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_method_is_in_the_table(name):
    from graft.methods import method_names

    text = (ROOT / name).read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(method_names())


def test_links_lead_somewhere():
    for name in [*LANGUAGES, "CONTRIBUTING.md"]:
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{name}: {target}"
