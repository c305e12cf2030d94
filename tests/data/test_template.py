"""What is learned, and after which tokens. `apply_chat_template` and whole-text tokenisation are
the oracles where they are right; where they are not, the properties stand alone."""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.rendering import pair
from graft.data.template import (
    IGNORED,
    PLAIN_TEMPLATE,
    Encoder,
    Tokens,
    find_chat_template,
    render_prompt,
)
from graft.errors import DataError

from .conftest import CHATML

ALL = ["byte_level", "with_bos", "chatml", "prepended", "metaspace"]

# Everything that makes cutting a text hard: blanks, line breaks, several bytes to a character.
texts = st.text(alphabet="ab 1=.\n\n好é", max_size=12)
answers = texts.filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    messages = []
    if draw(st.booleans()):
        messages.append(turn("system", draw(texts)))
    for _ in range(draw(st.integers(1, 3))):
        messages += [turn("user", draw(texts)), turn("assistant", draw(answers))]
    return messages


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(user: str, *rest: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [turn(roles[i % 2], content) for i, content in enumerate((user, *rest))]


def learned_runs(tokens: Tokens) -> list[tuple[int, list[int]]]:
    """Where each run of learned tokens begins, and the run."""
    runs: list[tuple[int, list[int]]] = []
    before = IGNORED
    for index, label in enumerate(tokens.labels):
        if label != IGNORED:
            if before == IGNORED:
                runs.append((index, []))
            runs[-1][1].append(label)
        before = label
    return runs


def encode(tokenizer: Any, messages: list[dict[str, str]], **kwargs: Any) -> list[Tokens]:
    encoder = Encoder(tokenizer, find_chat_template(tokenizer))
    return encoder.encode(encoder.conversation(messages), **kwargs)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of `ids` from the middle of a text (decoders take a space off the beginning)."""
    mark = tokenizer("\n", add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(mark + ids)
    return decoded[decoded.index("\n") + 1 :]


@pytest.fixture(params=ALL)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue(request.param)


relaxed = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


@relaxed
@given(messages=conversations())
def test_exactly_the_answers_and_their_ends_are_learned_after_what_inference_sees(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> None:
    template = find_chat_template(tokenizer)
    end = "<|im_end|>" if tokenizer.chat_template else "</s>"
    (tokens,) = encode(tokenizer, messages)
    assert len(tokens.input_ids) == len(tokens.labels)
    assert all(b in (a, IGNORED) for a, b in zip(*tokens, strict=True))
    runs = learned_runs(tokens)
    asked = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(runs) == len(asked)
    for (start, run), index in zip(runs, asked, strict=True):
        assert text_of(tokenizer, run) == messages[index]["content"] + end
        assert tokens.input_ids[:start] == render_prompt(tokenizer, messages[:index], template)
    assert tokens.labels[-1] != IGNORED


@relaxed
@given(prompt=texts, completion=answers)
def test_prompt_and_completion_are_joined_as_they_are(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> None:
    (tokens,) = Encoder(tokenizer, None).encode([pair(prompt, completion)])
    ((start, run),) = learned_runs(tokens)
    # What generate feeds is the tokenizer's own view of the prompt alone.
    assert tokens.input_ids[:start] == tokenizer(prompt)["input_ids"]
    assert tokens.input_ids[:start] == render_prompt(tokenizer, prompt, None)
    if prompt:
        assert text_of(tokenizer, run) == completion + "</s>"
    whole = tokenizer(prompt + completion + "</s>")["input_ids"]
    assert tokenizer.decode(tokens.input_ids) == tokenizer.decode(whole)


@relaxed
@given(
    parts=st.lists(
        st.sampled_from(
            ["<s>", "</s>", "<|im_end|>", "<unk>", " ", "\n", "a", "1", "好", "the cat"]
        )
    )
)
def test_special_tokens_in_a_text_are_no_borders_that_show(
    tokenizer: PreTrainedTokenizerBase, parts: list[str]
) -> None:
    """Texts are tokenised in parts, from special token to special token: as if whole."""
    prompt = "cat" + "".join(parts)
    (tokens,) = Encoder(tokenizer, None).encode([pair(prompt, "sat")])
    ((start, _),) = learned_runs(tokens)
    assert tokens.input_ids[:start] == tokenizer(prompt)["input_ids"]


def test_a_token_that_would_reach_across_the_cut_is_not_learned(
    byte_level: PreTrainedTokenizerBase,
) -> None:
    joined = byte_level("a\n\n\nb")["input_ids"]
    assert byte_level.decode(joined[1:2]) == "\n\n"  # the case: one token for two line breaks
    (tokens,) = Encoder(byte_level, None).encode([pair("a\n", "\n\nb")])
    ((start, run),) = learned_runs(tokens)
    assert tokens.input_ids[:start] == byte_level("a\n")["input_ids"]
    assert byte_level.decode(run) == "\n\nb</s>"


@pytest.mark.parametrize("kind", ["prepended", "metaspace"])
def test_no_space_appears_between_prompt_and_completion(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    begin = tokenizer.decode(tokenizer("cat")["input_ids"]).removesuffix("cat")
    assert tokenizer.convert_ids_to_tokens(tokenizer("cat")["input_ids"])[1].startswith("▁")
    for prompt, completion in [("2+2=", "4"), ("the ", "cat"), ("the", " cat"), ("a\n", "cat")]:
        (tokens,) = Encoder(tokenizer, None).encode([pair(prompt, completion)])
        assert tokenizer.decode(tokens.input_ids) == f"{begin}{prompt}{completion}</s>"


def test_equals_the_whole_text_tokenised_at_once(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = chat("The cat?", "It sat.", "And the dog?", "It looked\n\nat the cat.")
    template = find_chat_template(tokenizer)
    whole = tokenizer.apply_chat_template(messages, chat_template=template)["input_ids"]
    (tokens,) = encode(tokenizer, messages)
    cut = len(tokens.input_ids)
    assert tokens.input_ids == whole[:cut]
    assert tokenizer.decode(whole[cut:]).strip() == ""


def test_equals_the_mask_of_a_template_that_marks_what_is_generated(
    chatml: PreTrainedTokenizerBase,
) -> None:
    marked = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    messages = [turn("system", "Be brief."), *chat("The cat?", "It sat.", "Why?", "So.")]
    oracle = chatml.apply_chat_template(
        messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    encoder = Encoder(chatml, marked)
    (tokens,) = encoder.encode(encoder.conversation(messages))
    cut = len(tokens.labels)
    mask = [int(label != IGNORED) for label in tokens.labels]
    assert mask == oracle["assistant_masks"][:cut]
    assert not any(oracle["assistant_masks"][cut:])


def test_bos_stands_once(tokenizer: PreTrainedTokenizerBase) -> None:
    adds = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    messages = chat("The cat?", "It sat.", "Why?", "So.")
    (tokens,) = encode(tokenizer, messages)
    ((block,),) = Encoder(tokenizer, None).encode_texts(["The cat."], 99)
    ((written,),) = Encoder(tokenizer, None).encode_texts(["<s>The cat."], 99)
    prompt = render_prompt(tokenizer, "<s>The cat." if adds else "The cat.", None)
    expected = [tokenizer.bos_token_id] if adds else []
    for ids in (tokens.input_ids, block.input_ids, prompt):
        assert [i for i in ids if i == tokenizer.bos_token_id] == expected
        assert ids[: len(expected)] == expected
    assert written.input_ids.count(tokenizer.bos_token_id) == 1


def test_learn_all(chatml: PreTrainedTokenizerBase) -> None:
    messages = chat("The cat?", "It sat.", "Why?", "So.")
    (masked,) = encode(chatml, messages)
    (everything,) = encode(chatml, messages, learn_all=True)
    assert everything.input_ids == everything.labels == masked.input_ids


def test_turns_after_the_last_answer_are_left_out(chatml: PreTrainedTokenizerBase) -> None:
    messages = chat("The cat?", "It sat.")
    assert encode(chatml, [*messages, turn("user", "Why?")]) == encode(chatml, messages)


def test_a_template_that_rewrites_earlier_turns_gives_a_row_for_each_answer(
    chatml: PreTrainedTokenizerBase,
) -> None:
    # As Qwen3's: the thoughts of the last answer are shown, those of earlier ones dropped.
    thinking = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
        "{% if message.role == 'assistant' and loop.last %}{{ '=\\n' }}{% endif %}"
        "{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    messages = chat("The cat?", "It sat.", "Why?", "So.")
    encoder = Encoder(chatml, thinking)
    rows = encoder.encode(encoder.conversation(messages))
    assert len(rows) == 2
    for tokens, index in zip(rows, (1, 3), strict=True):
        ((start, run),) = learned_runs(tokens)
        assert chatml.decode(run) == f"=\n{messages[index]['content']}<|im_end|>"
        assert tokens.input_ids[:start] == render_prompt(chatml, messages[:index], thinking)


def test_a_prompt_that_is_not_how_the_answer_begins_is_an_error_in_training_only(
    chatml: PreTrainedTokenizerBase,
) -> None:
    # As DeepSeek-R1's: the prompt opens a thought that the rendered answer does not have.
    opening = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n=\\n' }}{% endif")
    encoder = Encoder(chatml, opening)
    messages = chat("The cat?", "It sat.", "Why?")
    with pytest.raises(DataError, match=r"turn 2 \(assistant\) otherwise than its prompt"):
        encoder.conversation(messages)
    whole = chatml.apply_chat_template(messages, chat_template=opening, add_generation_prompt=True)
    assert render_prompt(chatml, messages, opening) == whole["input_ids"]


def test_a_template_without_an_end_of_turn_gets_the_end_token_after_each_answer(
    byte_level: PreTrainedTokenizerBase,
) -> None:
    bare = (
        "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    encoder = Encoder(byte_level, bare)
    messages = chat("The cat?", "It sat.", "Why?", "So.")
    rows = encoder.encode(encoder.conversation(messages))
    for tokens, index in zip(rows, (1, 3), strict=True):
        ((start, run),) = learned_runs(tokens)
        assert byte_level.decode(run) == f" {messages[index]['content']}\n</s>"
        assert tokens.input_ids[:start] == render_prompt(byte_level, messages[:index], bare)


def test_an_unknown_character_at_the_end_is_not_taken_for_an_end(
    wordpiece: PreTrainedTokenizerBase,
) -> None:
    wordpiece = copy.deepcopy(wordpiece)
    wordpiece.eos_token = "[SEP]"
    (tokens,) = Encoder(wordpiece, None).encode([pair("the cat", "the ☃")])
    assert tokens.labels[-2:] == [wordpiece.unk_token_id, wordpiece.eos_token_id]


def test_a_tokenizer_without_an_end_token_is_refused(wordpiece: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="could never end"):
        find_chat_template(wordpiece)
    with pytest.raises(DataError, match="could never end"):
        Encoder(wordpiece, None).encode([pair("the", "cat")])


def test_what_a_template_refuses_is_told(chatml: PreTrainedTokenizerBase) -> None:
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="refuses the conversation: roles must alternate"):
        Encoder(chatml, strict).conversation(chat("a", "b"))


@relaxed
@given(text=texts, length=st.integers(2, 9))
def test_texts_are_cut_into_blocks_that_lose_nothing(
    tokenizer: PreTrainedTokenizerBase, text: str, length: int
) -> None:
    (blocks,) = Encoder(tokenizer, None).encode_texts([text], length)
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id] if text.strip() else []
    assert [token for block in blocks for token in block.input_ids] == whole
    assert all(block.labels == block.input_ids for block in blocks)
    assert all(len(block.input_ids) == length for block in blocks[:-1])


def test_render_prompt_of_a_text(
    chatml: PreTrainedTokenizerBase, with_bos: PreTrainedTokenizerBase
) -> None:
    as_turn = render_prompt(chatml, "The cat?", CHATML)
    assert as_turn == render_prompt(chatml, [turn("user", "The cat?")], CHATML)
    assert chatml.decode(as_turn) == (
        "<|im_start|>user\nThe cat?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_prompt(with_bos, "The cat?", None) == with_bos("The cat?")["input_ids"]
    with pytest.raises(DataError, match="need a chat template"):
        render_prompt(chatml, [turn("user", "The cat?")], None)


def test_render_prompt_of_an_encoder_decoder(wordpiece: PreTrainedTokenizerBase) -> None:
    source = wordpiece("the cat")["input_ids"]
    assert render_prompt(wordpiece, "the cat", None, TaskType.SEQ_2_SEQ_LM) == source
    turns = [turn("system", "the"), turn("user", "cat")]
    assert render_prompt(wordpiece, turns, None, TaskType.SEQ_2_SEQ_LM) == source


def test_the_plain_template_reads_well(with_bos: PreTrainedTokenizerBase) -> None:
    assert find_chat_template(with_bos) == "<s>" + PLAIN_TEMPLATE
    messages = [turn("system", "Be brief."), *chat("The cat?", "It sat.", "Why?")]
    assert with_bos.decode(render_prompt(with_bos, messages, "<s>" + PLAIN_TEMPLATE)) == (
        "<s>Be brief.\n\n### Instruction:\nThe cat?\n\n### Response:\nIt sat.</s>\n\n"
        "### Instruction:\nWhy?\n\n### Response:\n"
    )
