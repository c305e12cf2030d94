"""Chat templates in the styles that models have, and tokenizers of both kinds for each."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

__all__ = ["GENERATION", "STYLES", "TOOLS", "Style", "tokenizer_of"]


@dataclass(frozen=True)
class Style:
    """A chat template, and what it makes of an answer.

    Attributes:
        template: Jinja source.
        special: Special tokens that it writes, beside those of every tokenizer.
        end: What ends an answer.
        eos: The tokenizer's end token, which need not end turns.
        before: What the template puts in front of an answer that its prompt does not have.
        system: Whether it takes system turns.
        trims: Whether it takes blanks off both ends of an answer.
    """

    template: str
    special: tuple[str, ...] = ()
    end: str = "</s>"
    eos: str = "</s>"
    before: str = ""
    system: bool = True
    trims: bool = False

    def learned(self, content: str) -> str:
        """What is to be learned of an answer."""
        return self.before + (content.strip() if self.trims else content) + self.end


_CHATML = ("<|im_start|>", "<|im_end|>")

# An end of turn that is not the end of the text, and a line break after it.
CHATML = Style(
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    _CHATML,
    end="<|im_end|>",
)

# The template writes the BOS that the tokenizer adds too; headers; trimmed contents.
LLAMA3 = Style(
    "{%- for m in messages %}"
    "{%- set turn = '<|head|>' + m.role + '<|/head|>\\n\\n' + m.content | trim + '<|eot|>' %}"
    "{{- (bos_token if loop.first else '') + turn }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\\n\\n' }}{%- endif %}",
    ("<|head|>", "<|/head|>", "<|eot|>"),
    end="<|eot|>",
    trims=True,
)

# Marks that are plain text, the system's text in the first question, BOS written, EOS ends turns.
LLAMA2 = Style(
    "{%- if messages[0].role == 'system' %}"
    "{%- set opening = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{%- set turns = messages[1:] %}"
    "{%- else %}{%- set opening = '' %}{%- set turns = messages %}{%- endif %}"
    "{%- for m in turns %}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}"
    "{%- elif m.role == 'user' %}"
    "{{- bos_token + '[INST] ' + (opening if loop.first else '') + m.content + ' [/INST]' }}"
    "{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}"
    "{%- endfor %}",
    before=" ",
)

# The answering role has another name, turns end with a token that is not EOS, no system turns.
GEMMA = Style(
    "{{- bos_token }}"
    "{%- if messages[0].role == 'system' %}{{- raise_exception('no system role') }}{%- endif %}"
    "{%- for m in messages %}"
    "{{- '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}"
    "{{- m.content | trim + '</turn>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<turn>model\\n' }}{%- endif %}",
    ("<turn>", "</turn>", "<eos>"),
    end="</turn>",
    eos="<eos>",
    system=False,
    trims=True,
)

# Roles as plain text, no BOS though the tokenizer adds one, EOS and a line break after.
ZEPHYR = Style(
    "{%- for m in messages %}"
    "{{- '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}",
)

# No line breaks at all; the prompt closes a thought, and past answers stand without it.
DEEPSEEK = Style(
    "{{- bos_token }}"
    "{%- for m in messages %}"
    "{%- if m.role == 'system' %}{{- m.content }}"
    "{%- elif m.role == 'user' %}{{- '<|User|>' + m.content }}"
    "{%- else %}"
    "{{- '<|Assistant|>' + ('</think>' if loop.last else '') + m.content + eos_token }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|Assistant|></think>' }}{%- endif %}",
    ("<|User|>", "<|Assistant|>", "<think>", "</think>"),
)

# An empty thought belongs to the last answer, and is part of it where the prompt has none.
THINKING = Style(
    "{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    (*_CHATML, "<think>", "</think>"),
    end="<|im_end|>",
    before="<think>\n\n</think>\n\n",
)

# What is generated is marked.
GENERATION = Style(
    "{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' %}"
    "{% generation %}{{- m.content + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}"
    "{%- else %}{{- m.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    _CHATML,
    end="<|im_end|>",
)

STYLES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "llama2": LLAMA2,
    "gemma": GEMMA,
    "zephyr": ZEPHYR,
    "deepseek": DEEPSEEK,
    "thinking": THINKING,
    "generation": GENERATION,
}

# ChatML with tools, calls and what came of them.
TOOLS = Style(
    "{%- if tools %}{{- '<|im_start|>system\\n' }}"
    "{%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{%- for call in m.tool_calls or [] %}"
    "{{- '<call>' + call.function.name + ' ' + call.function.arguments | tojson + '</call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    _CHATML,
    end="<|im_end|>",
)


def tokenizer_of(base: PreTrainedTokenizerBase, style: Style) -> Any:
    """A copy of `base` with the template and the special tokens of `style`."""
    tokenizer = copy.deepcopy(base)
    new = [AddedToken(token, special=True, normalized=False) for token in style.special]
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.eos_token = style.eos
    tokenizer.chat_template = style.template
    return tokenizer
