"""Every style of chat template with every kind of tokenizer: `apply_chat_template` is the oracle
of the tokens, its assistant mask that of generation blocks, and what is learned reads as the
answers and their ends."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from transformers import AutoTokenizer

from graft.data.rendering import pair
from graft.data.template import IGNORED, Encoder, Tokens, render_prompt
from graft.errors import DataError

from .chats import GENERATION, STYLES, TOOLS, Style, tokenizer_of
from .test_template import ALL, chat, conversations, learned_runs, text_of, turn

DATA = Path(__file__).parents[3] / "shared" / "data"  # public models and data, where they are there

PLAIN = [
    [*chat("The cat?", "It sat.")],
    [turn("system", "Be brief."), *chat("The cat?", "It sat.", "Why?", "So.", "1 2 3", "4 5 6")],
    [*chat("你好，世界。", "请写一首诗。\n\nOr two.", "the dog", "word")],
]


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> Style:
    return STYLES[request.param]


@pytest.fixture(params=ALL)
def tokenizer(request: pytest.FixtureRequest, style: Style) -> Any:
    return tokenizer_of(request.getfixturevalue(request.param), style)


def fitting(style: Style, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if style.system or message["role"] != "system"]


def encode(tokenizer: Any, messages: list[dict[str, Any]], tools: Any = None) -> list[Tokens]:
    encoder = Encoder(tokenizer, tokenizer.chat_template)
    return encoder.encode(encoder.conversation(messages, tools))


def breaks_prompts(tokenizer: Any, style: Style) -> bool:
    """Whether the tokens of a prompt change with the answer behind it."""
    split = tokenizer.backend_tokenizer.pre_tokenizer
    return style is STYLES["llama3"] and type(split).__name__ == "ByteLevel"


def closed_up(text: str) -> str:
    """`text` without the space that some tokenizers put behind every special token."""
    return re.sub(r"(<[^<>\s]+>) ", r"\1", text)


def whole_text(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> Any:
    return tokenizer.apply_chat_template(messages, return_dict=True, **options)


@pytest.mark.parametrize("messages", PLAIN, ids=["one", "several", "chinese"])
def test_rows_are_what_apply_chat_template_makes(
    tokenizer: Any, style: Style, messages: list[dict[str, Any]]
) -> None:
    """Token for token; and the tokens before a response are its prompt's, token for token.

    Where both cannot be had, because the tokens of a prompt change with what follows it, the prompt
    comes first: with GPT-2's way of splitting line breaks, after Llama 3's headers.
    """
    messages = fitting(style, messages)
    asked = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    rows = encode(tokenizer, messages)
    for tokens, last in zip(rows, asked if len(rows) > 1 else asked[-1:], strict=True):
        whole = whole_text(tokenizer, messages[: last + 1])["input_ids"]
        cut = len(tokens.input_ids)
        if breaks_prompts(tokenizer, style):
            assert tokens.input_ids != whole[:cut]
            assert tokenizer.decode(whole).startswith(tokenizer.decode(tokens.input_ids))
            continue
        assert tokens.input_ids == whole[:cut]
        assert tokenizer.decode(whole[cut:]).strip() == ""
    starts = [tokens.input_ids[:start] for tokens in rows for start, _ in learned_runs(tokens)]
    for start, index in zip(starts, asked, strict=True):
        if breaks_prompts(tokenizer, style):
            prompt = render_prompt(tokenizer, messages[:index], tokenizer.chat_template)
        else:
            prompt = whole_text(tokenizer, messages[:index], add_generation_prompt=True)[
                "input_ids"
            ]
        assert start == prompt


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12
)
@given(messages=conversations())
def test_what_is_learned_reads_as_the_answers_and_their_ends(
    tokenizer: Any, style: Style, messages: list[dict[str, Any]]
) -> None:
    """Whatever the contents: blanks and line breaks at their ends, characters of many bytes."""
    messages = fitting(style, messages)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    rows = encode(tokenizer, messages)
    runs = [(tokens, *run) for tokens in rows for run in learned_runs(tokens)]
    assert len(runs) == len(answers)
    asked = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    (end,) = tokenizer.convert_tokens_to_ids([style.end])
    for (tokens, start, run), content, index in zip(runs, answers, asked, strict=True):
        wanted = style.learned(content)
        said = closed_up(text_of(tokenizer, run))
        assert said in (wanted, f" {wanted}")  # with a space where a special token is in front
        assert run[-1] == end
        prompt = render_prompt(tokenizer, messages[:index], tokenizer.chat_template)
        assert tokens.input_ids[:start] == prompt


@pytest.mark.parametrize("name", ["llama3", "llama2", "gemma", "deepseek"])
@pytest.mark.parametrize("kind", ["with_bos", "prepended", "metaspace"])
def test_no_double_bos(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    """Where the template writes what the tokenizer adds."""
    style = STYLES[name]
    tokenizer = tokenizer_of(request.getfixturevalue(kind), style)
    messages = chat("The cat?", "It sat.")
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2  # the trap
    (tokens,) = encode(tokenizer, messages)
    prompt = render_prompt(tokenizer, messages[:1], tokenizer.chat_template)
    for ids in (tokens.input_ids, prompt):
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_an_end_of_turn_need_not_be_a_special_token(byte_level: Any) -> None:
    """Some models add theirs as a plain token."""
    tokenizer = copy.deepcopy(byte_level)
    tokenizer.add_tokens(["<|done|>", "<|other|>"])
    tokenizer.chat_template = STYLES["chatml"].template.replace("<|im_end|>", "<|done|>")
    assert tokenizer.convert_tokens_to_ids("<|done|>") not in tokenizer.all_special_ids
    (tokens,) = encode(tokenizer, chat("The cat?", "It sat.", "Why?", "So.<|other|>"))
    said = [tokenizer.decode(run) for _, run in learned_runs(tokens)]
    assert said == ["It sat.<|done|>", "So.<|other|><|done|>"]
    # One that no template writes ends nothing: it may be the text's own.
    (alone,) = Encoder(tokenizer, None).encode([pair("The cat", " sat<|other|>")])
    assert tokenizer.decode(alone.input_ids) == "The cat sat<|other|></s>"


# --- generation blocks ------------------------------------------------------------------------

MARKED = {
    "whole turn": GENERATION.template,
    "line break too": GENERATION.template.replace(
        "{% endgeneration %}{{- '\\n' }}", "{{- '\\n' }}{% endgeneration %}"
    ),
    "last answer only": GENERATION.template.replace(
        "{%- if m.role == 'assistant' %}", "{%- if m.role == 'assistant' and loop.last %}"
    ),
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("case", MARKED)
@pytest.mark.parametrize("messages", PLAIN, ids=["one", "several", "chinese"])
def test_a_marked_template_learns_transformers_own_mask(
    kind: str, case: str, messages: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    tokenizer = tokenizer_of(request.getfixturevalue(kind), GENERATION)
    tokenizer.chat_template = MARKED[case]
    oracle = whole_text(tokenizer, messages, return_assistant_tokens_mask=True)
    (tokens,) = encode(tokenizer, messages)
    cut = len(tokens.labels)
    assert tokens.input_ids == oracle["input_ids"][:cut]
    assert [int(label != IGNORED) for label in tokens.labels] == oracle["assistant_masks"][:cut]
    assert not any(oracle["assistant_masks"][cut:])
    assert any(oracle["assistant_masks"])


def test_an_end_of_turn_that_is_not_marked_is_learned_all_the_same(chatml: Any) -> None:
    """The mask of many a template stops before it: nothing would ever end."""
    tokenizer = tokenizer_of(chatml, GENERATION)
    tokenizer.chat_template = GENERATION.template.replace(
        "{{- m.content + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}",
        "{{- m.content }}{% endgeneration %}{{- '<|im_end|>\\n' }}",
    )
    messages = chat("The cat?", "It sat.", "Why?", "So.")
    oracle = whole_text(tokenizer, messages, return_assistant_tokens_mask=True)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in [
        token
        for token, on in zip(oracle["input_ids"], oracle["assistant_masks"], strict=True)
        if on
    ]
    (tokens,) = encode(tokenizer, messages)
    said = [tokenizer.decode(run) for _, run in learned_runs(tokens)]
    assert said == ["It sat.<|im_end|>", "So.<|im_end|>"]


def test_where_nothing_is_marked_nothing_is_learned(byte_level: Any) -> None:
    """Not even the end that is put where a template has none."""
    tokenizer = tokenizer_of(byte_level, GENERATION)
    for end in ("<|im_end|>", ""):
        tokenizer.chat_template = GENERATION.template.replace(
            "m.role == 'assistant'", "m.role == 'nobody'"
        ).replace("<|im_end|>", end)
        (tokens,) = encode(tokenizer, chat("The cat?", "It sat."))
        assert set(tokens.labels) == {IGNORED}


def test_a_mark_reaches_no_token_of_the_prompt(byte_level: Any) -> None:
    """Where tokens would reach across the cut, what inference sees comes first."""
    tokenizer = tokenizer_of(byte_level, GENERATION)
    messages = chat("The cat?", "\n\nIt sat.")
    oracle = whole_text(tokenizer, messages, return_assistant_tokens_mask=True)
    (tokens,) = encode(tokenizer, messages)
    ((start, run),) = learned_runs(tokens)
    assert tokens.input_ids != oracle["input_ids"][: len(tokens.input_ids)]  # the case
    prompt = whole_text(tokenizer, messages[:1], add_generation_prompt=True)["input_ids"]
    assert tokens.input_ids[:start] == prompt
    assert tokenizer.decode(run) == "\n\nIt sat.<|im_end|>"


# --- turns that are not learned ---------------------------------------------------------------


def test_a_turn_with_loss_false_is_read_and_not_learned(tokenizer: Any, style: Style) -> None:
    messages = chat("The cat?", "It sat.", "Why?", "So.", "And?", "word")
    silent = [{**m, "loss": False} if m["content"] in ("It sat.", "word") else m for m in messages]
    said = encode(tokenizer, silent)
    runs = [(tokens, *run) for tokens in said for run in learned_runs(tokens)]
    ((tokens, start, run),) = runs
    assert closed_up(text_of(tokenizer, run)).strip() == style.learned("So.").strip()
    prompt = render_prompt(tokenizer, messages[:3], tokenizer.chat_template)
    assert tokens.input_ids[:start] == prompt
    assert "It sat." in tokenizer.decode(prompt)
    assert "word" not in tokenizer.decode(tokens.input_ids)


def test_learn_all_leaves_out_what_is_not_to_be_learned(chatml: Any) -> None:
    tokenizer = tokenizer_of(chatml, STYLES["chatml"])
    messages = chat("The cat?", "It sat.", "Why?", "So.")
    messages[1]["loss"] = False
    encoder = Encoder(tokenizer, tokenizer.chat_template)
    (tokens,) = encoder.encode(encoder.conversation(messages), learn_all=True)
    left_out = [t for t, label in zip(*tokens, strict=True) if label == IGNORED]
    assert tokenizer.decode(left_out) == "It sat.<|im_end|>\n"


def test_a_turn_that_its_prompt_does_not_announce_may_be_context(chatml: Any) -> None:
    tokenizer = tokenizer_of(chatml, STYLES["chatml"])
    tokenizer.chat_template = STYLES["chatml"].template.replace(
        "message.role + '\\n'", "(message.name or message.role) + '\\n'"
    )
    messages = chat("The cat?", "It sat.", "Why?", "So.")
    messages[1]["name"] = "other"
    with pytest.raises(DataError, match="turn 2"):
        encode(tokenizer, messages)
    silent = [messages[0], {**messages[1], "loss": False}, *messages[2:]]
    (tokens,) = encode(tokenizer, silent)
    ((start, run),) = learned_runs(tokens)
    assert tokenizer.decode(run) == "So.<|im_end|>"
    assert tokens.input_ids[:start] == render_prompt(
        tokenizer, messages[:3], tokenizer.chat_template
    )
    assert "<|im_start|>other\nIt sat." in tokenizer.decode(tokens.input_ids[:start])


# --- tools ------------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "the cat", "n": 2}}}
ABOUT = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALLING: list[dict[str, Any]] = [
    turn("user", "The cat?"),
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    turn("tool", "on the mat"),
    turn("assistant", "It sat."),
]


@pytest.mark.parametrize("kind", ALL)
def test_calls_and_what_follows_them_are_learned(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = tokenizer_of(request.getfixturevalue(kind), TOOLS)
    (tokens,) = encode(tokenizer, CALLING, ABOUT)
    whole = whole_text(tokenizer, CALLING, tools=ABOUT)["input_ids"]
    assert tokens.input_ids == whole[: len(tokens.input_ids)]
    said = [text_of(tokenizer, run) for _, run in learned_runs(tokens)]
    assert said == ['<call>look {"at": "the cat", "n": 2}</call><|im_end|>', "It sat.<|im_end|>"]
    (start, _), (after, _) = learned_runs(tokens)
    for at, index in ((start, 1), (after, 3)):
        prompt = render_prompt(tokenizer, CALLING[:index], tokenizer.chat_template, tools=ABOUT)
        assert tokens.input_ids[:at] == prompt
    assert '"name": "look"' in tokenizer.decode(tokens.input_ids[:start])


@pytest.mark.parametrize(
    ("without", "messages", "tools", "said"),
    [
        ("if tools", chat("a", "b"), ABOUT, "passes over `tools`"),
        ("m.tool_calls", CALLING, None, "passes over `tool_calls`"),
        ("tool", CALLING, None, "passes over tool turns"),
        ("system", [turn("system", "Be."), *chat("a", "b")], None, "passes over system turns"),
    ],
)
def test_a_template_that_passes_over_something_is_refused(
    chatml: Any, without: str, messages: list[dict[str, Any]], tools: Any, said: str
) -> None:
    tokenizer = tokenizer_of(chatml, TOOLS)
    if without in TOOLS.template and without not in ("tool", "system"):
        tokenizer.chat_template = TOOLS.template.replace(without, without.replace("tool", "no"))
    else:
        tokenizer.chat_template = TOOLS.template.replace(
            "for m in messages", f"for m in messages if m.role != '{without}'"
        )
    with pytest.raises(DataError, match=said):
        encode(tokenizer, messages, tools)


def test_a_blank_system_turn_may_be_passed_over(chatml: Any) -> None:
    tokenizer = tokenizer_of(chatml, TOOLS)
    tokenizer.chat_template = TOOLS.template.replace(
        "for m in messages", "for m in messages if m.role != 'system'"
    )
    assert encode(tokenizer, [turn("system", " "), *chat("a", "b")])


def test_values_that_a_template_cannot_join_are_told(chatml: Any) -> None:
    tokenizer = tokenizer_of(chatml, STYLES["chatml"])
    tokenizer.chat_template = "{{ messages[0].content + 1 }}"
    with pytest.raises(DataError, match="refuses the conversation: can only concatenate"):
        encode(tokenizer, chat("a", "b"))


# --- tokenizers of real models, where they are there --------------------------------------------


@pytest.mark.parametrize("where", ["tokenizers/minimind6400", "lm/stories260K"])
def test_a_real_models_tokenizer(where: str) -> None:
    if not (DATA / where).is_dir():
        pytest.skip("not here")
    tokenizer = AutoTokenizer.from_pretrained(DATA / where)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = STYLES["llama2"].template
    messages = PLAIN[1]
    (tokens,) = encode(tokenizer, messages)
    whole = whole_text(tokenizer, messages)["input_ids"]
    assert tokens.input_ids == whole[: len(tokens.input_ids)]
    said = [text_of(tokenizer, run).strip() for _, run in learned_runs(tokens)]
    assert said == [f"{answer}{tokenizer.eos_token}" for answer in ("It sat.", "So.", "4 5 6")]
    if "tools" in tokenizer.chat_template:
        (tokens,) = encode(tokenizer, CALLING, ABOUT)
        call, answer = (tokenizer.decode(run) for _, run in learned_runs(tokens))
        assert '"name": "look"' in call
        assert answer == f"It sat.{tokenizer.eos_token}"
