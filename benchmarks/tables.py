"""A table of measurements: one row per contestant, ratios to those that it is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Spread:
    """What is said of many measurements of one thing."""

    least: float
    middle: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        every = sorted(values)
        return cls(every[0], median(every), every[-1])

    def __str__(self) -> str:
        return f"{number(self.middle)} ({number(self.least)} .. {number(self.most)})"


@dataclass
class Table:
    """Samples of one quantity, by contestant; samples with the same index are of the same round.

    references: contestants that all others are compared with (the floor, the peers).
    details: further columns, by contestant.
    aims: what the figures should be, as sentences; nothing fails because of them.
    """

    name: str
    title: str
    unit: str
    samples: dict[str, list[float]]
    references: Sequence[str] = ()
    more_is_better: bool = False
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    aims: list[str] = field(default_factory=list)

    def spread(self, row: str) -> Spread:
        """What was measured of a contestant."""
        return Spread.of(self.samples[row])

    def ratio(self, row: str, reference: str) -> Spread:
        """A contestant's figures, round by round, as multiples of another one's."""
        pairs = zip(self.samples[row], self.samples[reference], strict=True)
        return Spread.of(own / other if other else float("inf") for own, other in pairs)

    def as_json(self) -> dict[str, Any]:
        """The whole table, samples included."""
        rows = {}
        for row, samples in self.samples.items():
            spread = self.spread(row)
            rows[row] = {
                "min": spread.least,
                "median": spread.middle,
                "max": spread.most,
                "samples": samples,
                "ratios": {
                    reference: vars(self.ratio(row, reference))
                    for reference in self._compared()
                    if reference != row
                },
                **self.details.get(row, {}),
            }
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "more_is_better": self.more_is_better,
            "rows": rows,
            "notes": self.notes,
            "aims": self.aims,
        }

    def as_text(self) -> str:
        """The table for a terminal, or for a page in Markdown."""
        compared = self._compared()
        columns = list(dict.fromkeys(key for row in self.details.values() for key in row))
        head = ["", self.unit, *(f"x {reference}" for reference in compared), *columns]
        lines = [head]
        for row in self.samples:
            ratios = ["" if other == row else str(self.ratio(row, other)) for other in compared]
            details = [number(self.details.get(row, {}).get(column, "")) for column in columns]
            lines.append([row, str(self.spread(row)), *ratios, *details])
        better = "more" if self.more_is_better else "less"
        title = f"{self.title}: median (min .. max), {better} is better"
        after = [f"  {note}" for note in self.notes] + [f"  aim: {aim}" for aim in self.aims]
        return "\n".join([title, "", *_aligned(lines), *([""] if after else []), *after])

    def _compared(self) -> list[str]:
        return [reference for reference in self.references if reference in self.samples]


def number(value: Any) -> str:
    """Three figures are as many as mean anything here."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 100 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
