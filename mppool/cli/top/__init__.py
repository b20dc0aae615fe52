"""`mppool top NAME`: what the pools of a manager do, live.

    statistics -> watch (rates, events: pure) -> drawing (lines of text: pure) -> screen (textual: keys, terminal)

Where the output is no terminal, or with --plain, tables are printed one below the other.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import TYPE_CHECKING

from mppool.cli import output
from mppool.cli.failing import OK, USAGE, CommandFailed
from mppool.cli.finding import running_manager, stats_of
from mppool.cli.looking import tables_of
from mppool.cli.output import Table

if TYPE_CHECKING:
    import argparse

    from mppool.manager import PoolManager


def top(options: argparse.Namespace) -> int:
    """Until q or Ctrl-C, which is how it is meant to end."""
    manager = running_manager(options.name, options.runtime_dir)
    if options.plain or not (sys.stdout.isatty() and sys.stdin.isatty()):
        return _printed(manager, options)
    if importlib.util.find_spec("textual") is None:
        raise CommandFailed(
            "textual, which draws the screen, is not installed: pip install 'mppool[cli]', or use --plain",
            USAGE,
        )
    from mppool.cli.top.screen import Top

    Top(lambda: stats_of(manager), options.name, options.interval, options.count).run()
    return OK


def _printed(manager: PoolManager, options: argparse.Namespace) -> int:
    left = options.count
    try:
        while True:
            found = stats_of(manager)
            gone = Table(f"manager {options.name}: no server at present", ())
            tables = [gone] if found is None else tables_of(found, counters=False)
            output.show(tables, rich=False)
            if left is not None:
                left -= 1
                if not left:
                    return OK
            time.sleep(options.interval)
    except KeyboardInterrupt:
        return OK
