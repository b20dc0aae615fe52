"""`mppool drain` and `shutdown`: commands for pools that live in other processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mppool.cli.failing import FAULT, NOT_FOUND, OK, CommandFailed
from mppool.cli.finding import running_manager, stats_of

if TYPE_CHECKING:
    import argparse


def drain(options: argparse.Namespace) -> int:
    """`mppool drain NAME POOL`: status 1 if leases are still out after the timeout."""
    manager = running_manager(options.name, options.runtime_dir)
    stats = stats_of(manager)
    pools = sorted(stats["pools"]) if stats and isinstance(stats["pools"], dict) else []
    if options.pool not in pools:
        known = f"there are: {', '.join(pools)}" if pools else "there are none at present"
        raise CommandFailed(
            f"manager {options.name!r} has no pool {options.pool!r}; {known}", NOT_FOUND
        )
    left = manager.drain(options.pool, options.timeout)
    if left:
        print(
            f"pool {options.pool}: {left} still out after {options.timeout:g} s; each is closed when its "
            "lease comes back"
        )
        return FAULT
    print(f"pool {options.pool}: everything that was open is closed")
    return OK


def forget_tokens(options: argparse.Namespace) -> int:
    """`mppool forget-tokens NAME [--identity IDENTITY]`."""
    manager = running_manager(options.name, options.runtime_dir)
    manager.forget_tokens(options.identity)
    whose = f"of {options.identity}" if options.identity else "of all identities"
    print(
        f"manager {options.name}: tokens {whose} are forgotten; the next process to need one fetches it"
    )
    return OK


def shutdown(options: argparse.Namespace) -> int:
    """`mppool shutdown NAME`."""
    manager = running_manager(options.name, options.runtime_dir)
    pid = manager.server_pid
    manager.shutdown()
    print(
        f"manager {options.name}: server {pid} has left; leases that are out go on, and the next checkout "
        "that finds nothing idle starts a new server"
    )
    return OK
