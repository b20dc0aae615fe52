"""Hooks for mkdocs: pages that lie beside docs/, and what tests need and readers do not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
BESIDE = {
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "examples.md": "examples/README.md",
}
_TITLE = re.compile(r"^(```\w+) title=.*$", re.MULTILINE)
_OUTSIDE = re.compile(r"\]\(\.\./(?!\.\./)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what people read that is not in docs/."""
    for name, path in BESIDE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        text = text.replace("](docs/", "](").replace("](../docs/", "](")
        files.append(File.generated(config, name, content=text))
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.is_file() and path.suffix in {".py", ".json", ".ini"}:
            files.append(
                File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path))
            )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ lead to the pages that were added. What tests find blocks by is not for readers."""
    markdown = _TITLE.sub(r"\1", markdown)
    places = {path: name for name, path in BESIDE.items()}

    def inside(link: re.Match[str]) -> str:
        path, anchor = link[1], link[2] or ""
        return f"]({places.get(path, path)}{anchor})"

    if page.file.src_uri.startswith("decisions/"):
        return re.sub(
            r"\]\(\.\./\.\./([^)\s]+)\)",
            lambda link: f"](../{places.get(link[1], link[1])})",
            markdown,
        )
    return _OUTSIDE.sub(inside, markdown)
