"""SQuAD's own file, paragraphs with their questions inside -> one row a question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from graft.data.rows import Row
from graft.errors import DataError

__all__ = ["flattened", "is_nested"]


def is_nested(document: dict[str, Any]) -> bool:
    """Whether `document` is a file of SQuAD's: articles, their paragraphs, their questions."""
    articles = document.get("data")
    return (
        isinstance(articles, list)
        and bool(articles)
        and isinstance(articles[0], dict)
        and "paragraphs" in articles[0]
    )


def flattened(document: dict[str, Any], where: str) -> Iterator[Row]:
    """One row a question: `id`, `title`, `context`, `question`, `answers`, ...

    Raises:
        DataError: An article, paragraph or question that is not laid out so.
    """
    for at, article in enumerate(document["data"], 1):
        for paragraph in _objects(article, "paragraphs", f"{where}, article {at}"):
            about = {"title": article["title"]} if "title" in article else {}
            about |= {"context": paragraph.get("context")}
            for question in _objects(paragraph, "qas", f"{where}, article {at}"):
                yield about | question


def _objects(holder: Any, key: str, where: str) -> list[dict[str, Any]]:
    held = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(held, list) or not all(isinstance(item, dict) for item in held):
        raise DataError(f"{where}: expected {key}, a list of objects (SQuAD's layout).")
    return held
