"""`mppool drain`, `resize`, `reset`, `shutdown`: commands for pools that live in other processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mppool.cli.failing import FAULT, NOT_FOUND, OK, USAGE, CommandFailed
from mppool.cli.finding import running_manager, stats_of

if TYPE_CHECKING:
    import argparse

    from mppool.manager import PoolManager


def _manager_with(options: argparse.Namespace) -> PoolManager:
    """The manager, which has the pool. CommandFailed, which says what there is, otherwise."""
    manager = running_manager(options.name, options.runtime_dir)
    stats = stats_of(manager)
    pools = sorted(stats["pools"]) if stats else []
    if options.pool not in pools:
        known = f"there are: {', '.join(pools)}" if pools else "there are none at present"
        raise CommandFailed(
            f"manager {options.name!r} has no pool {options.pool!r}; {known}", NOT_FOUND
        )
    return manager


def drain(options: argparse.Namespace) -> int:
    """`mppool drain NAME POOL`: status 1 if leases are still out after the timeout."""
    left = _manager_with(options).drain(options.pool, options.timeout)
    if left:
        print(
            f"pool {options.pool}: {left} still out after {options.timeout:g} s; each is closed when its "
            "lease comes back"
        )
        return FAULT
    print(f"pool {options.pool}: everything that was open is closed")
    return OK


def resize(options: argparse.Namespace) -> int:
    """`mppool resize NAME POOL [--max-size N|none] [--min-size N]`."""
    bounds: dict[str, Any] = {}
    if options.max_size is not None:
        bounds["max_size"] = None if options.max_size == "none" else options.max_size
    if options.min_size is not None:
        bounds["min_size"] = options.min_size
    if not bounds:
        raise CommandFailed("resize: give --max-size, --min-size or both", USAGE)
    if options.budget:
        return _resize_budget(options, bounds)
    _manager_with(options).resize(options.pool, **bounds)
    said = ", ".join(f"{name} is {'no cap' if n is None else n}" for name, n in bounds.items())
    print(
        f"pool {options.pool}: {said} now, until a later declaration says something else than the last one did"
    )
    return OK


def _resize_budget(options: argparse.Namespace, bounds: dict[str, Any]) -> int:
    """`mppool resize NAME BUDGET --budget --max-size N`."""
    if list(bounds) != ["max_size"] or bounds["max_size"] is None:
        raise CommandFailed(
            "resize --budget: give --max-size, a whole number, and no other bound", USAGE
        )
    manager = running_manager(options.name, options.runtime_dir)
    stats = stats_of(manager)
    budgets = sorted(stats["budgets"]) if stats else []
    if options.pool not in budgets:
        known = f"there are: {', '.join(budgets)}" if budgets else "there are none at present"
        raise CommandFailed(
            f"manager {options.name!r} has no budget {options.pool!r}; {known}", NOT_FOUND
        )
    manager.resize_budget(options.pool, bounds["max_size"])
    print(
        f"budget {options.pool}: max_size is {bounds['max_size']} now, until a later declaration says something "
        "else than the last one did"
    )
    return OK


def reset(options: argparse.Namespace) -> int:
    """`mppool reset NAME POOL`."""
    _manager_with(options).reset(options.pool, over=options.over)
    pace = f", over {options.over:g} s" if options.over else ""
    print(
        f"pool {options.pool}: everything that is open now is closed as soon as it is idle or released{pace}"
    )
    return OK


def reopen(options: argparse.Namespace) -> int:
    """`mppool reopen NAME POOL`."""
    _manager_with(options).reopen(options.pool)
    print(f"pool {options.pool}: open in all processes, except those that closed it for themselves")
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
