"""Classes, tags and answers in texts, as a trained adapter gives them."""

from __future__ import annotations

import math

import pytest
import torch

from graft import PromptTuningConfig
from graft.errors import DataError
from graft.inference import Predictor
from tiny import SENTENCES, make_tokenizer, save_adapter

# --- classes ----------------------------------------------------------------------------------


def test_classes_are_named_with_their_probability(classifier, bert_folder):
    predictor = Predictor.load(classifier)
    found = predictor.classify([SENTENCES[0], (SENTENCES[1], SENTENCES[2])])
    tokenizer = make_tokenizer()
    inputs = [
        tokenizer(SENTENCES[0], return_tensors="pt"),
        tokenizer(SENTENCES[1], SENTENCES[2], return_tensors="pt"),
    ]
    for chances, given in zip(found, inputs, strict=True):
        with torch.no_grad():
            wanted = predictor.model(**given).logits[0].softmax(-1).tolist()
        assert chances == pytest.approx(dict(zip(["moon", "fish", "home"], wanted, strict=True)))
    assert sum(found[0].values()) == pytest.approx(1)
    assert found[0] != found[1]


def test_a_text_to_classify_is_cut_to_the_positions(bert_folder, tmp_path):
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    save_adapter(tmp_path, bert_folder, config, labels=["a", "b"])
    predictor = Predictor.load(tmp_path)
    sixty = make_tokenizer().decode(make_tokenizer()("fish " * 90)["input_ids"][:60])
    found = predictor.classify(["fish " * 90, sixty])
    assert found[0] == pytest.approx(found[1])


# --- tags and answers in texts ----------------------------------------------------------------


def test_a_word_has_the_tag_of_its_first_token(tagger):
    predictor = Predictor.load(tagger)
    words = ["The", "colourful", "", "cat", "你好"]
    (tags,) = predictor.tag([words])
    tokenizer = make_tokenizer()
    with torch.no_grad():
        inputs = tokenizer(" ".join(words), return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")[0].tolist()
        said = predictor.model(**inputs).logits[0].argmax(-1).tolist()
    starts = [0, 4, None, 15, 19]
    for start, tag in zip(starts, tags, strict=True):
        if start is None:
            assert tag is None
            continue
        first = next(at for at, (a, b) in enumerate(offsets) if a <= start < b)
        assert tag == ["B-who", "I-who", "O"][said[first]]


def test_words_beyond_the_positions_are_not_passed_over(tagger):
    with pytest.raises(DataError, match=r"99 words has more tokens .* reads \(64\)"):
        Predictor.load(tagger).tag([["fish"] * 99])


def test_an_answer_is_the_likeliest_span_of_all_windows(reader):
    """By brute force over every span of every window."""
    predictor = Predictor.load(reader)
    text = ". ".join(SENTENCES)
    tokenizer = make_tokenizer()
    question = tokenizer("who")["input_ids"]
    ids = tokenizer(text)["input_ids"]
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    room, chances, nowhere = 64 - len(question), {}, []
    for at in range(0, len(ids), room - 16):
        with torch.no_grad():
            part = question + ids[at : at + room]
            out = predictor.model(input_ids=torch.tensor([part]))
        starts, ends = out.start_logits[0].softmax(-1), out.end_logits[0].softmax(-1)
        nowhere.append(float(starts[0] * ends[0]))
        for i in range(len(question), len(part)):
            for j in range(i, len(part)):
                move = at - len(question)
                chances[i + move, j + move] = float(starts[i] * ends[j])
        if at + room >= len(ids):
            break
    assert len(nowhere) > 3
    first, last = max(chances, key=lambda span: chances[span])
    (found,) = predictor.extract([("who", text)])
    assert math.prod(nowhere) < 0.5  # so there is one
    assert found.text == text[offsets[first][0] : offsets[last][1]].strip()
    assert found.probability == pytest.approx(chances[first, last], rel=1e-4)
    assert text[found.start :].startswith(found.text)


def test_a_text_without_an_answer(reader):
    predictor = Predictor.load(reader)
    with torch.no_grad():
        for head in predictor.model.base_model.qa_outputs.parameters():
            head.zero_()
        # Positions 0 get all: what stands there is the question's first token.
        predictor.model.base_model.qa_outputs.register_forward_hook(
            lambda _, __, out: out.index_fill(1, torch.tensor([0]), 9.0)
        )
    (found,) = predictor.extract([("who", "The cat sees a fish.")])
    assert (found.text, found.start) == ("", None)
    assert found.probability > 0.9
