"""Replacing files so that a crash leaves the old one or the new one, and naming them for a person."""

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` in the place of `path`. A process killed in between leaves `path` as it was."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)  # noqa: PTH105 - the call whose atomicity is documented


def short_path(path: Path) -> str:
    """The path as one would type it here."""
    here = Path.cwd()
    path = here / path
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
