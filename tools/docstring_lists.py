"""For mkdocstrings: `name: what it is` in our docstrings becomes a list item."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ITEM = re.compile(r"^([a-z_][a-z_0-9]*(?:, [a-z_][a-z_0-9]*)*): ", re.MULTILINE)


class DocstringLists(griffe.Extension):
    """Changes the text before it is parsed."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None and not obj.is_module:
            obj.docstring.value = lists_in(obj.docstring.value)


def lists_in(text: str) -> str:
    """The items of a paragraph as a list, with an empty line before it."""
    lines: list[str] = []
    for line in text.split("\n"):
        if _ITEM.match(line):
            if lines and lines[-1] and not lines[-1].startswith(("- ", "    ")):
                lines.append("")
            lines.append(_ITEM.sub(r"- `\1`: ", line))
        else:
            lines.append(line)
    return "\n".join(lines)
