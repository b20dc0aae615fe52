"""All tables, one after the other, or those that are named."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import (
    asynchronous,
    brake,
    cold,
    contention,
    engines,
    footprint,
    goodput,
    hosting,
    machines,
    scale,
    shares,
    sharing,
    spike,
    storm,
    tokens,
    warm,
)
from benchmarks.command import command
from benchmarks.tables import Table

MODULES = (
    warm,
    engines,
    asynchronous,
    contention,
    cold,
    sharing,
    spike,
    goodput,
    storm,
    brake,
    shares,
    tokens,
    hosting,
    machines,
    footprint,
    scale,
)


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measure, print every table, and write what was asked for."""
    runs = {module.__name__.rpartition(".")[2]: module.run for module in MODULES}
    return command(runs, arguments, choose=True)


if __name__ == "__main__":
    main()
