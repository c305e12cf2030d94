"""Pages that graft writes: one file of HTML each, which needs nothing but itself.

No script, no font, no network, and the browser is told so. `base.html.j2` has the colours, light
and dark, and what every page is made of; a page is a template that extends it, beside the code that
knows what is in it. That every text is escaped is jinja2's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from graft.visible import visible

__all__ = ["render"]


def render(
    package: str, template: str, filters: Mapping[str, Callable[..., Any]], **values: Any
) -> str:
    """The HTML of a template.

    Args:
        package: Where the template lies, such as `graft.data.preview`.
        template: Its file.
        filters: What the template pipes values through, besides `visible`.
        values: What it shows.
    """
    places = [jinja2.PackageLoader(name, ".") for name in (package, __name__)]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(places),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"visible": visible, **filters}
    return environment.get_template(template).render(values)
