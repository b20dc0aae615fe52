"""`mppool list`, `stats` and `top`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from mppool.cli import output
from mppool.cli.failing import NOT_FOUND, OK, CommandFailed
from mppool.cli.finding import managers_in, running_manager, runtime_directory, stats_of
from mppool.cli.output import Table
from mppool.errors import PoolError
from mppool.rendezvous.launch import server_pid

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from mppool.rendezvous.paths import ManagerPaths

_GAUGES = ("size", "in_use", "idle", "waiting", "opening")
_LIVE_COUNTERS = ("opened", "moved", "timeouts", "died_with_process")


def list_managers(options: argparse.Namespace) -> int:
    """`mppool list`."""
    directory = runtime_directory(options.runtime_dir)
    found = managers_in(directory)
    if not found:
        print(f"no manager in {directory}")
        return OK
    table = Table(str(directory), ("manager", "server", "uptime", "processes", "pools"))
    for paths in found:
        table.add(paths.name, *_row_of_manager(paths, options.runtime_dir))
    output.show([table], rich=output.is_rich(options.plain))
    return OK


def _row_of_manager(paths: ManagerPaths, runtime_dir: str | None) -> tuple[object, ...]:
    pid = server_pid(paths)
    if pid is None:
        return ("not running", "-", "-", "-")
    try:
        stats: Any = stats_of(running_manager(paths.name, runtime_dir))
    except (PoolError, TimeoutError) as error:
        return (f"{pid}, no answer: {error}", "-", "-", "-")
    except CommandFailed:
        stats = None
    if stats is None:
        return ("not running", "-", "-", "-")
    pools = ", ".join(sorted(stats["pools"])) or "-"
    return (pid, duration(stats["uptime"]), len(stats["processes"]), pools)


def stats(options: argparse.Namespace) -> int:
    """`mppool stats NAME`."""
    manager = running_manager(options.name, options.runtime_dir)
    found = stats_of(manager)
    if found is None:
        raise CommandFailed(f"manager {options.name!r}: its server has just gone", NOT_FOUND)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        output.show(tables_of(found, counters=True), rich=output.is_rich(options.plain))
    return OK


def top(options: argparse.Namespace) -> int:
    """`mppool top NAME`: until Ctrl-C, which is how it is meant to end."""
    manager = running_manager(options.name, options.runtime_dir)
    left = options.count
    try:
        with output.live(rich=output.is_rich(options.plain)) as show:
            while True:
                found = stats_of(manager)
                gone = Table(f"manager {options.name}: no server at present", ())
                show([gone] if found is None else tables_of(found, counters=False))
                if left is not None:
                    left -= 1
                    if not left:
                        return OK
                time.sleep(options.interval)
    except KeyboardInterrupt:
        return OK


def tables_of(found: Mapping[str, Any], *, counters: bool) -> list[Table]:
    """The figures of a manager as tables."""
    heading = (
        f"manager {found['name']}   server {found['server_pid']}   up {duration(found['uptime'])}   "
        f"{len(found['processes'])} processes"
    )
    pools = Table(
        heading, ("pool", "max", *_words(_GAUGES), "breaker", "checkouts", *_words(_LIVE_COUNTERS))
    )
    for pool in found["pools"].values():
        cap = "no cap" if pool["max_size"] is None else pool["max_size"]
        counted = pool["counters"]
        gauges = [pool[name] for name in _GAUGES]
        live = [counted[name] for name in _LIVE_COUNTERS]
        name = f"{pool['name']} (closed)" if pool["closed"] else pool["name"]
        pools.add(name, cap, *gauges, pool["breaker"], counted["checkouts"], *live)
    tables = [pools, *(_processes(pool) for pool in found["pools"].values() if pool["processes"])]
    if counters:
        tables += [_counters(pool) for pool in found["pools"].values()]
    return tables


def _processes(pool: Mapping[str, Any]) -> Table:
    columns = ("pid", "label", "slots", "in use", "idle", "waiting", "checkouts", "")
    table = Table(f"pool {pool['name']}, by process", columns)
    for one in sorted(pool["processes"], key=lambda one: int(one["pid"])):
        table.add(
            one["pid"], one["label"] or "-", one["slots"], one["in_use"], one["idle"],
            one["waiting"], one["checkouts"], "does not answer" if one["stale"] else "",
        )  # fmt: skip
    return table


def _counters(pool: Mapping[str, Any]) -> Table:
    table = Table(f"pool {pool['name']}, counted so far", ("what", "count"))
    for name, count in pool["counters"].items():
        if count:
            table.add(name.replace("_", " "), count)
    for kind, histogram in pool["histograms"].items():
        if sum(histogram["counts"]):
            parts = [f"{share:.0%} {_quantile(histogram, share)}" for share in (0.5, 0.95, 0.99)]
            table.add(f"{kind} time", ", ".join(parts))
    return table


def _quantile(histogram: Mapping[str, Sequence[float]], share: float) -> str:
    """Which bound this share of all durations keeps."""
    bounds, counts = histogram["bounds"], histogram["counts"]
    wanted, seen = share * sum(counts), 0.0
    for bound, count in zip(bounds, counts, strict=False):  # the last count has no bound
        seen += count
        if seen >= wanted:
            return f"<= {duration(bound)}"
    return f"> {duration(bounds[-1])}"


def duration(seconds: float) -> str:
    """A duration for people."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _words(names: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]
