from __future__ import annotations

import json

from graft.training.schema import run_file_schema


def test_prints_the_schema(graft, capsys):
    assert graft("schema") == 0
    assert json.loads(capsys.readouterr().out) == run_file_schema()


def test_writes_it(graft, tmp_path, capsys):
    path = tmp_path / "new" / "run.schema.json"
    assert graft("schema", "--output", path) == 0
    assert json.loads(path.read_text()) == run_file_schema()
    assert f"# yaml-language-server: $schema={path}" in capsys.readouterr().out
    assert graft("schema", "--output", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert graft("schema", "--output", tmp_path / "file" / "x.json") == 2
    assert "is a file" in capsys.readouterr().err
