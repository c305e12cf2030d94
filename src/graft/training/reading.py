"""A file of settings -> a dict, or one sentence that says what is wrong with the YAML.

Reads YAML 1.2's numbers (`1e-4` is a float) and refuses a key given twice.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from graft.errors import ConfigError, did_you_mean

__all__ = ["parse_yaml", "read_settings"]


def read_settings(path: str | Path, what: str = "run file") -> dict[Any, Any]:
    """The settings in the YAML file `path`.

    Args:
        path: The file.
        what: What it is, for messages.

    Raises:
        ConfigError: No such file, or one that holds no settings.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = [str(p) for p in Path(path).parent.glob("*.y*ml")]
        hint = did_you_mean(str(path), siblings)
        raise ConfigError(f"There is no {what} {path}.{hint}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The {what} {path} cannot be read: save it as UTF-8 text.") from None
    except OSError as error:
        raise ConfigError(f"The {what} {path} cannot be read: {error.strerror}.") from None
    raw = parse_yaml(text, str(path))
    if isinstance(raw, dict):
        return raw
    found = "is empty" if raw is None else f"holds {_kind(raw)}, not settings"
    raise ConfigError(
        f"{path} {found}; expected lines such as `base_model: ...`. "
        "`graft init MODEL DATA` writes a run file."
    )


def parse_yaml(text: str, where: str) -> Any:
    """What the YAML `text` says; `where` it stands is for messages.

    Raises:
        ConfigError: It is not valid.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        problem = str(error.problem)
        if "'\\t'" in problem:
            problem = "a tab, where YAML wants spaces to indent"
        elif mark is None:  # one of our own, which says where
            raise ConfigError(f"{where}: {problem}.") from None
        raise ConfigError(f"{where} is not valid YAML{place}: {problem}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {error}.") from None


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"only {str(value)[:40]!r}"


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-4` is a number, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                line = key_node.start_mark.line + 1
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"`{key}` is given twice, in lines {seen[key]} and {line}"
                    )
                seen[key] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
