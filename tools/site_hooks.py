"""Hooks for mkdocs: pages that lie beside docs/, and what tests need and readers do not."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
BESIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
"""Pages of the repository, and what they are called on the site."""

_TITLE = re.compile(r"^(```\w+) title=.*$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what people read that is not in docs/."""
    for path, name in BESIDE.items():
        if (ROOT / path).exists():
            text = (ROOT / path).read_text(encoding="utf-8")
            place = posixpath.dirname(path)
            files.append(File.generated(config, name, content=_on_site(text, place, "")))
    for found in sorted((ROOT / "examples").rglob("*")):
        if found.is_file() and found.suffix in {".py", ".json", ".ini"}:
            name = str(found.relative_to(ROOT))
            files.append(File.generated(config, name, abs_src_path=str(found)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ lead to the pages that were added. What tests find blocks by is not for readers."""
    markdown = _TITLE.sub(r"\1", markdown)
    name = page.file.src_uri
    if name in BESIDE.values():
        return markdown
    place = posixpath.dirname(f"docs/{name}")
    return _on_site(markdown, place, posixpath.dirname(name))


def _on_site(text: str, place: str, site_place: str) -> str:
    """The text with its links as the site has them. place: its directory in the repository; site_place: on the site.

    What is in the repository and not on the site keeps its text, and loses its link.
    """

    def link(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        there = posixpath.normpath(posixpath.join(place, target))
        if there.startswith("docs/"):
            on_site = there.removeprefix("docs/")
        elif there in BESIDE:
            on_site = BESIDE[there]
        elif there.startswith("examples/") and (ROOT / there).is_file():
            on_site = there
        else:
            return words
        return f"[{words}]({posixpath.relpath(on_site, site_place or '.')}{anchor})"

    return _LINK.sub(link, text)
