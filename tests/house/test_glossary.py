"""The classes that the glossary names are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.house import source

_TERM = re.compile(r"\*\*([^*]+)\*\* \(([^)]*`[A-Z][^)]*)\)")


def terms() -> list[tuple[str, list[str]]]:
    """Each term with the classes that it has, one of which must be there."""
    text = (source.ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    return [(term, re.findall(r"`(\w+)`", names)) for term, names in _TERM.findall(text)]


@pytest.mark.parametrize(("term", "names"), terms(), ids=[term for term, _ in terms()])
def test_the_class_of_a_term_is_in_the_code(term: str, names: list[str]) -> None:
    defined = {
        node.name
        for tree in source.modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    assert defined & set(names), f"docs/glossary.md: {term} is called otherwise now"
