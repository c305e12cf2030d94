"""Environment variables that change what graft and its libraries do. Secrets are not shown."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit

from graft.environment.problem import Problem

__all__ = ["is_offline", "masked", "proxies", "setting_problems", "shown_settings"]

_PLACES = (
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "GRAFT_CACHE",
    "USE_MODELSCOPE_HUB",
    "MODELSCOPE_CACHE",
    "MODELSCOPE_ENDPOINT",
    "MODELSCOPE_DOMAIN",
)
_SECRETS = ("HF_TOKEN", "MODELSCOPE_API_TOKEN")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_COMPUTE = (
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
    "OMP_NUM_THREADS",
)
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def shown_settings(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Name -> value of the variables that matter; None where it is not set.

    A secret is `set` and no more; a password in an address is `***`.
    """
    shown = {name: environ.get(name) for name in _PLACES}
    shown |= {name: "set" if environ.get(name) else None for name in _SECRETS}
    shown |= {**proxies(environ), "no_proxy": _either_case(environ, "no_proxy")}
    shown |= {name: environ.get(name) for name in _COMPUTE}
    return {name: value if value is None else masked(value) for name, value in shown.items()}


def setting_problems(environ: Mapping[str, str], plain_names: str | None) -> list[Problem]:
    """Values that the hubs' clients refuse, and what they want installed.

    Args:
        environ: The environment variables.
        plain_names: The hub that `ORG/NAME` alone means; None where that is not known.
    """
    problems = []
    endpoint = environ.get("HF_ENDPOINT", "")
    if endpoint and urlsplit(endpoint).scheme not in {"http", "https"}:
        what = f"HF_ENDPOINT={masked(endpoint)} is no address: it does not begin with https://."
        cure = f"export HF_ENDPOINT=https://{masked(endpoint).rpartition('//')[2]}"
        problems.append(Problem("warning", what, cure))
    for name, address in proxies(environ).items():
        scheme, mark, rest = masked(address or "").partition("://")
        if not mark:
            continue
        if scheme not in _PROXY_SCHEMES:
            what = f"{name}={scheme}://{rest}: the hubs' clients know no proxies of {scheme}://."
            better = "socks5" if scheme.startswith("socks") else "http"
            problems.append(Problem("warning", what, f"export {name}={better}://{rest}"))
        elif scheme.startswith("socks") and find_spec("socksio") is None:
            what = f"{name}={scheme}://{rest} needs a package for SOCKS proxies."
            problems.append(Problem("warning", what, "pip install socksio PySocks"))
    if plain_names == "ms" and find_spec("modelscope_hub") is None:
        what = "USE_MODELSCOPE_HUB is set, but ModelScope's client is not installed."
        problems.append(Problem("warning", what, "pip install 'graft-peft[modelscope]'"))
    return problems


def proxies(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Name, in lower case, -> address of each proxy, with its password; None where there is none.

    They are found in lower and upper case, as their readers find them.
    """
    return {name: _either_case(environ, name) for name in _PROXIES}


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the user has said that Hugging Face is not to be asked."""
    return _is_on(environ, "HF_HUB_OFFLINE") or _is_on(environ, "TRANSFORMERS_OFFLINE")


def masked(address: str) -> str:
    """`address` without the password, or the token, that stands before its `@`."""
    before, at, host = address.rpartition("@")
    if not at:
        return address
    scheme, mark, user = before.rpartition("://")
    name, colon, _ = user.partition(":")
    return f"{scheme}{mark}{name}:***@{host}" if colon else f"{scheme}{mark}***@{host}"


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    """As huggingface_hub reads its own switches."""
    return environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}


def _either_case(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name) or environ.get(name.upper())
