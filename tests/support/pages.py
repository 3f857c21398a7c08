"""README.md and the pages in docs/, as text, links and code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r'^ *```(\w*)(?: title="(.*?)")?\n(.*?)^ *```', re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    """Return the path of a page in the checkout."""
    return str(page.relative_to(ROOT))


def code_blocks(page: Path, language: str) -> list[str]:
    """Return the code in a page that is marked as being in that language and has no title."""
    return [code for marked, title, code in _FENCE.findall(page.read_text()) if marked == language and not title]


def titled_blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return language, title and code of the blocks of a page whose title is the path of a file."""
    return [(language, title, code) for language, title, code in _FENCE.findall(page.read_text()) if title]


def code_with(page: Path, word: str, language: str = "python") -> str:
    """Return the only block of code in a page that contains the word."""
    (code,) = (block for block in code_blocks(page, language) if word in block)
    return code


def links(page: Path) -> list[str]:
    """Return the targets of all links and images in a page that do not lead to another site."""
    text = _FENCE.sub("", page.read_text())
    return [target for target in re.findall(r"\]\(([^)]*)\)", text) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
