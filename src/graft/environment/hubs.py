"""Whether Hugging Face and ModelScope answer from here. A hub that does not is no error."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graft.environment.problem import Problem
from graft.environment.settings import is_offline, masked, proxies

__all__ = ["Hub", "Question", "hub_problems"]

_HUGGING_FACE = "https://huggingface.co"
_MIRROR = "https://hf-mirror.com"
_MODELSCOPE = "https://modelscope.cn"
_PROXY_ASKS_FOR_PASSWORD = 407


@dataclass(frozen=True)
class Hub:
    """A hub, and whether it answers.

    Attributes:
        name: `Hugging Face` or `ModelScope`.
        endpoint: Where it was asked, which variables can change.
        reachable: Whether it answered; None where it was not asked.
        seconds: From the question to the answer.
        why: Why it did not answer or was not asked; None where it answered.
    """

    name: str
    endpoint: str
    reachable: bool | None
    seconds: float | None = None
    why: str | None = None


class Question:
    """Asks both hubs at once, in the background, from the moment it is made.

    Args:
        environ: Where the hubs are (HF_ENDPOINT, MODELSCOPE_ENDPOINT), and whether to ask.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, environ: Mapping[str, str], timeout: float) -> None:
        self._timeout = timeout
        self._hubs = {
            "Hugging Face": environ.get("HF_ENDPOINT") or _HUGGING_FACE,
            "ModelScope": _modelscope_endpoint(environ),
        }
        # What a client's error may repeat.
        self._addresses = [*self._hubs.values(), *filter(None, proxies(environ).values())]
        self._not_asked = {"Hugging Face": "HF_HUB_OFFLINE is set"} if is_offline(environ) else {}
        try:
            import huggingface_hub.utils  # noqa: F401  before the time begins to run
        except Exception:  # a package may fail in any way, and that is a problem of its own
            self._not_asked = dict.fromkeys(self._hubs, "huggingface_hub cannot be imported")
        self._answers: queue.Queue[Hub] = queue.Queue()
        self._deadline = time.monotonic() + timeout
        for name in self._hubs.keys() - self._not_asked:
            # As daemons, for what a timeout does not end: a name server that does not answer.
            threading.Thread(target=self._ask, args=(name,), daemon=True).start()

    def answers(self) -> tuple[Hub, ...]:
        """What the hubs have answered, when both have or the time is over."""
        found: dict[str, Hub] = {}
        while len(found) + len(self._not_asked) < len(self._hubs):
            try:
                hub = self._answers.get(timeout=max(0.0, self._deadline - time.monotonic()))
            except queue.Empty:
                break
            found[hub.name] = hub
        late = f"no answer in {self._timeout:g} s"
        for name, endpoint in self._hubs.items():
            why = self._not_asked.get(name)
            silent = Hub(name, masked(endpoint), None if why else False, why=why or late)
            found.setdefault(name, silent)
        return tuple(found[name] for name in self._hubs)

    def _ask(self, name: str) -> None:
        endpoint = self._hubs[name]
        start = time.monotonic()
        try:
            status = _status(endpoint, self._timeout)
        except Exception as error:  # of the client, of a proxy it cannot use, of a broken package
            told = str(error).strip().partition("\n")[0] or type(error).__name__
            for address in self._addresses:
                told = told.replace(address, masked(address))
            why = re.sub(r"\[Errno -?\d+\] ", "", told)
        else:
            gone = status >= 500 or status == _PROXY_ASKS_FOR_PASSWORD
            why = f"the answer was status {status}" if gone else None
        seconds = time.monotonic() - start
        self._answers.put(Hub(name, masked(endpoint), why is None, seconds, why))


def hub_problems(
    hubs: Sequence[Hub], environ: Mapping[str, str], plain_names: str | None
) -> list[Problem]:
    """What to do where a hub that is used does not answer, by whether the other one does."""
    hugging_face, modelscope = hubs
    if plain_names == "ms" and modelscope.reachable is False and hugging_face.reachable:
        what = f"USE_MODELSCOPE_HUB is set, but ModelScope does not answer ({modelscope.why})."
        cure = "unset USE_MODELSCOPE_HUB  # or name models as hf:ORG/NAME"
        return [Problem("warning", what, cure)]
    if hugging_face.reachable is not False or (plain_names == "ms" and modelscope.reachable):
        return []
    what = f"Hugging Face does not answer at {hugging_face.endpoint} ({hugging_face.why})"
    if modelscope.reachable is False:
        what = "No hub answers; models and data in folders work as ever"
        cure = "export HF_HUB_OFFLINE=1  # or, behind a proxy: export https_proxy=http://HOST:PORT"
        return [Problem("hint", f"{what}.", cure)]
    if environ.get("HF_ENDPOINT"):
        return [
            Problem("warning", f"{what}.", "unset HF_ENDPOINT  # or name models as ms:ORG/NAME")
        ]
    cure = f"export HF_ENDPOINT={_MIRROR}  # or name models as ms:ORG/NAME"
    return [Problem("warning", f"{what}, but ModelScope does.", cure)]


def _status(endpoint: str, timeout: float) -> int:
    """The status of the hub's front page, asked for through the proxies of the environment."""
    from huggingface_hub.utils import get_session

    # A client of the kind that huggingface_hub has, without its hook, which refuses every address
    # where HF_HUB_OFFLINE is set.
    with type(get_session())(timeout=timeout) as client:
        return client.head(endpoint).status_code


def _modelscope_endpoint(environ: Mapping[str, str]) -> str:
    """As ModelScope's client finds it."""
    given = environ.get("MODELSCOPE_ENDPOINT") or environ.get("MODELSCOPE_DOMAIN") or _MODELSCOPE
    return given if "://" in given else f"https://{given}"
