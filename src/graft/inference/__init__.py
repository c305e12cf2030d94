"""An adapter at work: loaded with its base model and tokenizer, prompted as it was trained.

`sampling` says how tokens are chosen, `predictor` answers prompts, names classes, tags words and
finds answers in texts, `streaming` hands on an answer while it is made, `conversation` keeps the
turns of a chat.
"""

from graft.inference.conversation import Conversation
from graft.inference.predictor import Answer, Extract, Predictor
from graft.inference.sampling import Sampling

__all__ = ["Answer", "Conversation", "Extract", "Predictor", "Sampling"]
