"""What all of these commands have in common: arguments, and where the results go."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plotting import svg
from benchmarks.tables import Table

Run = Callable[[bool], Iterable[Table]]


def command(
    runs: dict[str, Run], arguments: Sequence[str] | None = None, *, choose: bool = False
) -> list[Table]:
    """Measure, print every table as soon as it is there, and write what was asked for.

    choose: the command line may name some of `runs`.
    """
    parser = argparse.ArgumentParser(
        description="Figures of mppool beside those of other pools, measured in one run."
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds: the shape, not the truth"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables as JSON")
    parser.add_argument("--plots", type=Path, metavar="DIRECTORY", help="write the tables as SVG")
    if choose:
        names = ", ".join(runs)
        parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {names}")
    given = parser.parse_args(arguments)
    chosen = (choose and given.names) or list(runs)
    unknown = sorted(set(chosen) - set(runs))
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(runs)}")
    tables: list[Table] = []
    print(_where())
    for name in chosen:
        for table in runs[name](given.quick):
            print(f"\n{table.as_text()}", flush=True)
            tables.append(table)
            if given.plots is not None and any(any(s) for s in table.samples.values()):
                given.plots.mkdir(parents=True, exist_ok=True)
                (given.plots / f"{table.name}.svg").write_text(svg(table), encoding="utf-8")
    if given.json is not None:
        given.json.write_text(json.dumps(as_json(tables), indent=1) + "\n", encoding="utf-8")
    return tables


def as_json(tables: list[Table]) -> dict[str, Any]:
    """Everything that was measured, and where."""
    return {"where": _where(), "tables": [table.as_json() for table in tables]}


def _where() -> str:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"Python {platform.python_version()} on {platform.system()} {platform.release()}, "
        f"{len(os.sched_getaffinity(0))} CPUs; load before: {load}; {sys.implementation.name}"
    )
