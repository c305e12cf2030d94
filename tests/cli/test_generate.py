from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch

from graft.cli import main
from graft.inference import Predictor, Sampling


@pytest.fixture(scope="module")
def answers(lora) -> list[str]:
    """What the library says to two prompts, in six tokens."""
    predictor = Predictor.load(lora)
    found = predictor.generate(["The cat", "A dog"], Sampling(max_new_tokens=6))
    assert not any(answer.finished for answer in found)
    return [answer.text for answer in found]


def test_only_the_answer_is_on_standard_output(lora, answers):
    """In a process of its own: what a user sees, and nothing of what libraries say."""
    words = ["generate", str(lora), "--prompt", "The cat", "--max-new-tokens", "6"]
    command = [sys.executable, "-m", "graft.cli", *words]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.decode() == answers[0] + "\n"
    assert done.stderr.decode() == "graft: cut off after 6 tokens.\n"


def test_several_prompts(graft, lora, answers, capsys):
    prompts = ["--prompt", "The cat", "--prompt", "A dog"]
    assert graft("generate", lora, *prompts, "--max-new-tokens", "6") == 0
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)


def test_prompts_from_a_file(graft, lora, answers, tmp_path, monkeypatch, capsys):
    """Or from standard input, which is called -."""
    (tmp_path / "prompts.txt").write_text("The cat\n\nA dog\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("The cat\n\nA dog\n"))
    for file in (tmp_path / "prompts.txt", "-"):
        words = ["--prompt-file", file, "--max-new-tokens", "6", "--json"]
        assert graft("generate", lora, *words) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert records == [
            {"prompt": prompt, "answer": answer, "finished": False}
            for prompt, answer in zip(["The cat", "A dog"], answers, strict=True)
        ]


def test_the_seed_decides_what_is_drawn(graft, lora, capsys):
    def drawn(*words: str) -> str:
        settings = ["--prompt", "The cat", "--max-new-tokens", "12", "--temperature", "4", *words]
        assert graft("generate", lora, *settings) == 0
        return capsys.readouterr().out

    torch.manual_seed(5)
    assert drawn("--seed", "1") == drawn("--seed", "1") != drawn("--seed", "2")


def test_a_classifier_names_the_label(graft, classifier, capsys):
    (chances,) = Predictor.load(classifier).classify(["The cat"])
    label = max(chances, key=lambda name: chances[name])
    assert graft("generate", classifier, "--prompt", "The cat") == 0
    assert capsys.readouterr().out == f"{label} {chances[label]:.4f}\n"
    assert graft("generate", classifier, "--prompt", "The cat", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"prompt": "The cat", "label": label, "probabilities": pytest.approx(chances)}


def test_a_pair_of_texts(graft, classifier, capsys):
    (chances,) = Predictor.load(classifier).classify([("The cat", "A dog")])
    words = ["--prompt", "The cat", "--text-pair", "A dog", "--json"]
    assert graft("generate", classifier, *words) == 0
    assert json.loads(capsys.readouterr().out)["probabilities"] == pytest.approx(chances)


def test_words_are_tagged_line_by_line(graft, tagger, capsys):
    prompts = ["The cat  sees 你好", "A dog"]
    words = [prompt.split() for prompt in prompts]
    tags = Predictor.load(tagger).tag(words)
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert graft("generate", tagger, *given) == 0
    lines = capsys.readouterr().out.split("\n")
    expected = []
    for row, named in zip(words, tags, strict=True):
        expected += [f"{word} {tag}" for word, tag in zip(row, named, strict=True)] + [""]
    assert lines == [*expected, ""]
    assert graft("generate", tagger, *given, "--json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records == [
        {"prompt": prompt, "words": row, "tags": named}
        for prompt, row, named in zip(prompts, words, tags, strict=True)
    ]


def test_an_answer_is_found_in_a_text_or_a_file(graft, reader, tmp_path, capsys):
    text = "The cat sees a fish. " * 9
    (tmp_path / "text.txt").write_text(text)
    (found,) = Predictor.load(reader).extract([("who", text)])
    assert found.text == text[found.start : found.start + len(found.text)]
    for context in (text, tmp_path / "text.txt"):
        words = ["generate", reader, "--prompt", "who", "--context", context]
        assert graft(*words) == 0
        out, err = capsys.readouterr()
        assert (out, err) == (f"{found.text}\n", "")
        assert graft(*words, "--json") == 0
        assert json.loads(capsys.readouterr().out) == {
            "prompt": "who",
            "answer": found.text,
            "start": found.start,
            "probability": pytest.approx(found.probability),
        }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["LORA"], "--prompt"),
        (["LORA", "--prompt-file", "nowhere.txt"], "nowhere.txt"),
        (["./nowhere", "--prompt", "a"], "no adapter folder ./nowhere"),
        (["BASE", "--prompt", "a"], "holds no adapter"),
        (["LORA", "--prompt", "a", "--base-model", "./nowhere"], "no folder ./nowhere"),
        (["LORA", "--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens"),
        (["LORA", "--prompt", "a", "--top-p", "0.5"], "temperature"),
        (["LORA", "--prompt", "a", "--text-pair", "b"], "classifiers"),
        (["CLASSES", "--prompt", "a", "--text-pair", "b", "--text-pair", "c"], "2 --text-pair"),
        (["LORA", "--prompt", "fish " * 99], "reads at most 64"),
        (["LORA", "--prompt", "a", "--context", "b"], "--context is for QUESTION_ANS"),
        (["READER", "--prompt", "a"], "give --context FILE or TEXT"),
        (["READER", "--prompt", "a", "--context", "nowhere.txt"], "no file nowhere.txt"),
        (["READER", "--prompt", "a", "--context", "BROKEN"], "cannot be read"),
        (["READER", "--prompt", "fish " * 50, "--context", "b"], "takes half of the 64 tokens"),
        (["TAGS", "--prompt", "fish " * 99], "more tokens than the base model reads (64)"),
        (["TAGS", "--prompt", "a", "--text-pair", "b"], "classifiers"),
    ],
)
def test_what_the_user_can_mend(
    graft, lora, classifier, tagger, reader, base_folder, tmp_path, capsys, words, said
):
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\xff")
    places = {"LORA": lora, "CLASSES": classifier, "BASE": base_folder}
    places |= {"TAGS": tagger, "READER": reader, "BROKEN": broken}
    assert graft("generate", *(places.get(word, word) for word in words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("verb", ["generate", "merge", "chat"])
def test_a_misspelt_option_is_no_argument(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "adapter", "--promt", "x"])
    assert end.value.code == 2
    assert "No such option" in capsys.readouterr().err
