"""The demo trains, measures and saves each method on the bundled model, and leaves no trace."""

from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import graft
from graft.data.template import IGNORED, render_prompt
from graft.demo import demo_model_path, heldout_rows, run, train_rows
from graft.demo.run import exact_match, run_demo, write_records
from graft.demo.settings import SETTINGS
from graft.errors import ConfigError
from graft.training.report import Callback

SHORT = {method: replace(chosen, steps=2) for method, chosen in SETTINGS.items()}
METHODS = list(SETTINGS)
WEIGHTS = "adapter_model.safetensors"


class Heard(Callback):
    def __init__(self):
        self.notes = []
        self.steps = []

    def note(self, text):
        self.notes.append(text)

    def on_step(self, step):
        self.steps.append(step)


def load_base():
    return AutoModelForCausalLM.from_pretrained(demo_model_path()).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_path())


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """A run of two steps of every method: results, folder, what was told, and its base model."""
    folder, heard, bases = tmp_path_factory.mktemp("demo") / "out", Heard(), []
    real = run.load_model

    def load(*args):
        bases.append(real(*args))
        return bases[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_model", load)
        results = run_demo(SHORT, output_dir=folder, callbacks=[heard])
    (base,) = bases
    return results, folder, heard, base


def parameters_in(folder: Path) -> int:
    """How many parameters were trained, by the files: an encoder's are beside the adapter."""
    state = folder / "graft_state.safetensors"
    tensors = load_file(state if state.exists() else folder / WEIGHTS)
    return sum(tensor.numel() for tensor in tensors.values())


def test_every_method_has_a_whole_result(short_run):
    results, folder, _, _ = short_run
    assert [result.method for result in results] == METHODS
    for result in results:
        assert result.trainable_parameters == parameters_in(folder / result.method)
        assert result.quality_before == results[0].quality_before
        assert 0 <= result.quality_after <= 1
        assert result.steps == 2
        assert result.seconds > 0
        assert result.peak_memory_gib is None or result.peak_memory_gib > 0


def test_it_tells_of_every_step(short_run):
    results, _, heard, _ = short_run
    assert heard.steps == [1, 2] * len(results)
    assert heldout_rows()[0]["completion"] in heard.notes[0]
    assert [note.strip() for note in heard.notes if note.strip() in METHODS] == METHODS


def test_the_base_model_is_as_before(short_run):
    base = short_run[-1]
    fresh, after = load_base().state_dict(), base.state_dict()
    assert list(after) == list(fresh)
    assert all(torch.equal(after[name], fresh[name]) for name in fresh)
    for module in base.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("method", ["prompt_tuning", "bitfit"])
def test_a_method_does_not_know_what_came_before_it(short_run, tmp_path, method):
    run_demo({method: SHORT[method]}, output_dir=tmp_path)
    alone, among = (load_file(place / method / WEIGHTS) for place in (tmp_path, short_run[1]))
    assert alone.keys() == among.keys()
    assert all(torch.equal(alone[key], among[key]) for key in alone)


# Both are PEFT's doing.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", METHODS)
def test_graft_and_peft_load_what_was_saved(short_run, tokenizer, method):
    folder = short_run[1] / method
    batch = tokenizer([heldout_rows()[0]["prompt"]], return_tensors="pt")
    with torch.no_grad():
        plain = load_base()(**batch).logits
        ours = graft.PeftModel.from_pretrained(load_base(), folder).eval()(**batch).logits
        theirs = peft.PeftModel.from_pretrained(load_base(), folder).eval()(**batch).logits
    theirs = theirs[:, -ours.shape[1] :]  # PEFT shows virtual tokens too
    torch.testing.assert_close(ours, theirs, atol=1e-5 * ours.abs().max().item(), rtol=0)
    assert (ours - plain).abs().max() > 0.1  # it does something


def test_the_tokenizer_lies_beside_the_adapter(short_run, tokenizer):
    saved = AutoTokenizer.from_pretrained(short_run[1] / "lora")
    text = train_rows()[0]["prompt"]
    assert saved(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert saved.chat_template is None


def test_prompts_are_tokenised_as_in_training(tokenizer):
    for row, learned in zip(train_rows()[:20], run._prepare(tokenizer), strict=False):
        prompt = render_prompt(tokenizer, row["prompt"], None)
        ids, labels = learned["input_ids"], learned["labels"]
        assert ids[: len(prompt)] == prompt
        assert [label for label in labels if label != IGNORED] == ids[len(prompt) :]


def test_rows_written_together_are_as_each_alone(tokenizer):
    base, rows = load_base(), heldout_rows()[:6]
    assert len({len(row["prompt"].split()) for row in rows}) > 1  # some are padded
    together = write_records(base, tokenizer, rows)
    assert together == [write_records(base, tokenizer, [row])[0] for row in rows]
    assert all(line and "\n" not in line for line in together)


def test_exact_match_counts_whole_lines():
    rows = [{"completion": " name = Ada"}, {"completion": " name = Ben"}]
    assert exact_match([" name = Ada", " name = Ben"], rows) == 1
    assert exact_match([" name = Ada", " name = Bea"], rows) == 0.5
    assert exact_match(["name = Ada", " name = Ben; "], rows) == 0


def test_half_of_the_steps_teach_the_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (result,) = run_demo({"lora": replace(SETTINGS["lora"], steps=50)})
    assert result.quality_before < 0.2
    assert result.quality_after > 0.9
    assert not list(tmp_path.iterdir())  # nothing is kept unless asked


def test_an_adapter_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / "ia3").mkdir()
    with pytest.raises(ConfigError, match=r"holds ia3 already"):
        run_demo({"lora": SHORT["lora"], "ia3": SHORT["ia3"]}, output_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ia3"]


def test_an_output_folder_that_is_a_file(tmp_path):
    file = tmp_path / "out"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        run_demo({"ia3": SHORT["ia3"]}, output_dir=file)
    assert file.read_text() == "mine"
