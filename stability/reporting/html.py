"""Renders the templates of pages. A page is one file that needs no other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stability.core import palette


def render(template: str, content: Mapping[str, Any]) -> bytes:
    """Return a page.

    Args:
        template: The name of the template in this folder.
        content: {name: value} of what the template shows. The palette is added.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(palette=palette, **content).encode()
