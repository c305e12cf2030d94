"""Where and when adapters act on a base model. Names no method: those are reached by `METHODS`.

`targets` finds layers, `site` puts adapters at them, `routing` says which rows use which,
`compose` and `prefix` bring in virtual tokens, `model` is the whole, `checkpoint` its files.
"""

from graft.adapt.model import PeftModel, get_peft_model

__all__ = ["PeftModel", "get_peft_model"]
