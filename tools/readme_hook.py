"""A hook of hatchling: the text of the package is README.md, with absolute links.

Relative links are right in a clone and in the repository's web pages; an index of packages shows the text alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Sets `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """See hatchling."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, metadata["urls"]["Source"]),
        }


def absolute(text: str, source: str) -> str:
    """The text with links to the repository's web pages, and pictures from there."""
    raw = source.replace("https://github.com/", "https://raw.githubusercontent.com/")

    def link(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        place = f"{raw}/main" if mark else f"{source}/blob/main"
        return f"{mark}[{words}]({place}/{target})"

    return _LINK.sub(link, text)
