"""`mppool bench`: figures of mppool beside those of other pools. The benchmarks come with the sources only."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mppool
from mppool.cli.failing import NOT_FOUND, OK, CommandFailed

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the benchmarks themselves, passed on as they are."""
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help="warm, cold, sharing, ... (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="a minute: the shape, not the truth")
    parser.add_argument("--json", metavar="FILE", help="write the tables as JSON, too")
    parser.add_argument("--plots", metavar="DIRECTORY", help="write the tables as SVG, too")


def bench(options: argparse.Namespace) -> int:
    """`mppool bench`: measure, print, and write what was asked for."""
    checkout = Path(mppool.__file__).resolve().parent.parent
    if not (checkout / "benchmarks" / "__main__.py").is_file():
        raise CommandFailed(
            "the benchmarks come with the sources of mppool, not with the installed package: run this "
            "in a checkout (`make bench` there sets everything up)",
            NOT_FOUND,
        )
    sys.path.insert(0, str(checkout))
    arguments = [*options.tables, *(["--quick"] if options.quick else [])]
    for name in ("json", "plots"):
        given = getattr(options, name)
        arguments += [f"--{name}", given] if given else []
    importlib.import_module("benchmarks.__main__").main(arguments)
    return OK
