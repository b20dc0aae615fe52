"""Tables for people: drawn by rich where it is installed and the output is a terminal, else plain."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBER = re.compile(r"-|\d[\d.]*( \w+)?")


@dataclass
class Table:
    """A title, the names of the columns, and texts."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.title = printable(self.title)

    def add(self, *cells: object) -> None:
        """One more row."""
        self.rows.append([printable(str(cell)) for cell in cells])

    def numeric(self, column: int) -> bool:
        """Whether a column stands on the right: all its texts are numbers, perhaps with a unit, or dashes."""
        return all(_NUMBER.fullmatch(row[column]) for row in self.rows)


def printable(text: str) -> str:
    """The text with nothing in it that a terminal would carry out: names and labels may be anybody's."""
    return "".join(
        letter
        if letter.isprintable() or letter == "\n"
        else letter.encode("unicode_escape", "backslashreplace").decode()
        for letter in text
    )


def is_rich(plain: bool) -> bool:
    """Whether rich draws: not asked to be plain, it is installed, and somebody watches."""
    return not plain and sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def show(tables: Sequence[Table], *, rich: bool) -> None:
    """Print tables."""
    if rich:
        from rich.console import Console

        Console().print(as_rich(tables))
    else:
        print("\n\n".join(as_text(table) for table in tables), flush=True)


def as_text(table: Table) -> str:
    """A table as aligned lines."""
    lines = [list(table.columns), *[list(row) for row in table.rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]
    right = [table.numeric(column) for column in range(len(table.columns))]
    text = [table.title] if table.title else []
    for line in lines:
        cells = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        ]
        text.append("  " + "  ".join(cells).rstrip())
    return "\n".join(text)


def as_rich(tables: Sequence[Table]) -> Any:
    """The same as something that rich draws."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = []
    for table in tables:
        one = RichTable(
            title=Text(table.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
        )
        for number, name in enumerate(table.columns):
            one.add_column(name, justify="right" if table.numeric(number) else "left")
        for row in table.rows:
            one.add_row(*[Text(cell) for cell in row])
        drawn.append(one)
    return Group(*drawn)
