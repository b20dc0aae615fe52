"""`mppool health`: for the probes of containers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mppool.cli.failing import FAULT, OK
from mppool.cli.output import printable

if TYPE_CHECKING:
    import argparse


def health(options: argparse.Namespace) -> int:
    """`mppool health NAME [--strict] [--json]`: status 1 for "down", with --strict also for "degraded".

    No server is no fault: an application that has not been used yet is ready.
    """
    from mppool.manager import PoolManager

    manager = PoolManager(options.name, runtime_dir=options.runtime_dir)
    found = manager.health()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        there = "" if found["pools"] or found["reasons"] else ": no pool is in use at present"
        print(found["status"] + there)
        for reason in found["reasons"]:
            print(f"  {printable(reason)}")
    bad = {"down", "degraded"} if options.strict else {"down"}
    return FAULT if found["status"] in bad else OK
