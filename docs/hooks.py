"""Adds to the site what lies outside of docs/: the write-ups with their figures and tables, and the changelog."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[1]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Append those files, each with its place in the site."""
    outside = {f"experiments/{path.name}": path for path in sorted((_ROOT / "experiments").glob("2026-*"))}
    outside["CHANGELOG.md"] = _ROOT / "CHANGELOG.md"
    for name, path in outside.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links that work in a checkout to the places of those files in the site."""
    for name in ("experiments/", "CHANGELOG.md"):
        markdown = markdown.replace(f"../{name}", name)
    if page.file.src_uri.startswith("experiments/"):  # beside docs/ in a checkout, in it in the site
        markdown = markdown.replace("](../docs/", "](../")
    if page.file.src_uri == "CHANGELOG.md":  # it is outside of docs/, whose folder is the site's root
        markdown = markdown.replace("](docs/", "](")
    return markdown
