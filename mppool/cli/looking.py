"""`mppool list`, `stats` and `leases`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mppool.cli import output
from mppool.cli.failing import NOT_FOUND, OK, CommandFailed
from mppool.cli.finding import is_in_use, managers_in, running_manager, runtime_directory, stats_of
from mppool.cli.output import Table
from mppool.errors import PoolError
from mppool.rendezvous.launch import server_pid
from mppool.stats import words

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from mppool.rendezvous.paths import ManagerPaths

_GAUGES = ("size", "in_use", "idle", "waiting", "opening")
_LIVE_COUNTERS = ("opened", "moved", "timeouts", "died_with_process")


def list_managers(options: argparse.Namespace) -> int:
    """`mppool list [--all]`: those that have a server, or whose processes hold something."""
    directory = runtime_directory(options.runtime_dir)
    found = managers_in(directory)
    shown = [paths for paths in found if options.all or is_in_use(paths)]
    if options.names:
        print("\n".join(paths.name for paths in shown))
        return OK
    hidden = len(found) - len(shown)
    more = f"{hidden} without a server: mppool list --all; mppool clean" if hidden else ""
    if not shown:
        print(f"no manager is in use in {directory}" + (f" ({more})" if more else ""))
        return OK
    table = Table(str(directory), ("manager", "server", "uptime", "processes", "pools"))
    for paths in shown:
        table.add(paths.name, *_row_of_manager(paths, options.runtime_dir))
    output.show([table], rich=output.is_rich(options.plain))
    if more:
        print(more)
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
    found = _figures(options)
    if options.json:
        print(json.dumps(for_javascript(found), indent=2))
    else:
        output.show(tables_of(found, counters=True), rich=output.is_rich(options.plain))
    return OK


def leases(options: argparse.Namespace) -> int:
    """`mppool leases NAME [--pool POOL]`: the oldest first."""
    found = _figures(options)
    if options.pool is not None and options.pool not in found["pools"]:
        known = ", ".join(sorted(found["pools"])) or "none"
        raise CommandFailed(
            f"manager {options.name!r} has no pool {options.pool!r}; there are: {known}", NOT_FOUND
        )
    held = held_in(found, options.pool)
    if options.json:
        print(json.dumps(for_javascript(held), indent=2))
        return OK
    if not held:
        print("nothing is lent")
        return OK
    columns = ("pool", "age", "pid", "process", "thread", "label", "identity", "resource", "id")
    table = Table(f"manager {found['name']}: {len(held)} leases", columns)
    for one in held:
        table.add(
            one["pool"], duration(one["age"]), one["pid"], one["process"] or "-", one["thread"] or "-",
            one["label"] or "-", one["identity"] or "-", one["description"] or "-", one["id"],
        )  # fmt: skip
    output.show([table], rich=output.is_rich(options.plain))
    return OK


def held_in(stats: Mapping[str, Any], pool: str | None = None) -> list[dict[str, Any]]:
    """Everything that is lent, the oldest first; `pool`: in this one only."""
    labels = {one["pid"]: one["label"] for one in stats["processes"]}
    held = [
        {
            "pool": name,
            "age": one["held_for"],
            "pid": one["pid"],
            "process": labels.get(one["pid"], ""),
            "thread": one.get("thread") or "",
            "label": one.get("label") or "",
            "identity": one["identity_key"],
            "description": one["description"],
            "id": one["id"],
        }
        for name, of_pool in stats["pools"].items()
        for one in of_pool["resources"]
        if one["held_for"] is not None and pool in (None, name)
    ]
    return sorted(held, key=lambda one: -one["age"])


def _figures(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] | None = stats_of(running_manager(options.name, options.runtime_dir))
    if found is None:
        raise CommandFailed(f"manager {options.name!r}: its server has just gone", NOT_FOUND)
    return found


_LARGEST = 2**53 - 1
"""Beyond it JavaScript, jq and others round whole numbers."""


def for_javascript(value: Any) -> Any:
    """The same with whole numbers that are too large for others as text."""
    if isinstance(value, dict):
        return {key: for_javascript(one) for key, one in value.items()}
    if isinstance(value, list):
        return [for_javascript(one) for one in value]
    return str(value) if type(value) is int and abs(value) > _LARGEST else value


def tables_of(found: Mapping[str, Any], *, counters: bool) -> list[Table]:
    """The figures of a manager as tables."""
    heading = (
        f"manager {found['name']}   server {found['server_pid']}   up {duration(found['uptime'])}   "
        f"{words.processes(len(found['processes']))}"
    )
    pools = Table(
        heading, ("pool", "max", *_words(_GAUGES), "breaker", "checkouts", *_words(_LIVE_COUNTERS))
    )
    for pool in found["pools"].values():
        cap = "no cap" if pool["max_size"] is None else pool["max_size"]
        if pool.get("share") is not None:
            cap = f"{pool['share']} of {cap}"
        counted = pool["counters"]
        gauges = [pool[name] for name in _GAUGES]
        live = [counted[name] for name in _LIVE_COUNTERS]
        name = f"{pool['name']} (closed)" if pool["closed"] else pool["name"]
        pools.add(name, cap, *gauges, pool["breaker"], counted["checkouts"], *live)
    budgets = [_budgets(found["budgets"])] if found.get("budgets") else []
    lanes = [_lanes(pool) for pool in found["pools"].values() if pool.get("lanes")]
    tables = [
        pools,
        *budgets,
        *lanes,
        *(_pins(pool) for pool in found["pools"].values() if pool.get("pins")),
        *(_processes(pool) for pool in found["pools"].values() if pool["processes"]),
    ]
    if found.get("machines") is not None:
        tables.append(_machines(found["machines"]))
    if counters:
        tables += [_counters(pool) for pool in found["pools"].values()]
    return tables


def _budgets(budgets: Mapping[str, Any]) -> Table:
    table = Table(
        "budgets: one cap over several pools", ("budget", "max", "size", "waiting", "pools")
    )
    for one in budgets.values():
        pools = ", ".join(f"{name} {size}" for name, size in one["pools"].items()) or "-"
        table.add(one["name"], one["max_size"], one["size"], one["waiting"], pools)
    return table


def _lanes(pool: Mapping[str, Any]) -> Table:
    table = Table(
        f"lanes of pool {pool['name']}", ("lane", "reserved", *_words(("in_use", "waiting")))
    )
    for name, lane in pool["lanes"].items():
        table.add(name or "(common)", lane["reserved"], lane["in_use"], lane["waiting"])
    return table


def _pins(pool: Mapping[str, Any]) -> Table:
    """What ties leases to their sessions in hosts."""
    table = Table(f"leases of pool {pool['name']} are tied by", ("what", "leases", "seconds"))
    for reason, pin in pool["pins"].items():
        table.add(reason, pin["leases"], f"{pin['seconds']:.1f}")
    return table


def _machines(known: Mapping[str, Any]) -> Table:
    """What this machine has of each cap, and all machines together."""
    state = (
        known["phase"] if known["age"] is None else f"{known['phase']}, {known['age']:.1f} s old"
    )
    heading = f"machine {known['machine']}, one of {known['machines']} at {known['redis']}   lease {state}"
    if known["trouble"]:
        heading += f"   {known['trouble']}"
    table = Table(heading, ("pool", "share", "of", "taken by all", "wanted by all"))
    for name, pool in known["pools"].items():
        cap = "no cap" if pool["max_size"] is None else pool["max_size"]
        table.add(
            name,
            "all" if pool["share"] is None else pool["share"],
            cap,
            pool["taken"],
            pool["wanted"],
        )
    return table


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
            table.add(f"{kind} time", quantiles(histogram))
    return table


def quantiles(histogram: Mapping[str, Sequence[float]]) -> str:
    """Which bounds half, 95 and 99 of 100 durations keep; empty where nothing was measured."""
    if not sum(histogram["counts"]):
        return ""
    return ", ".join(f"{share:.0%} {_quantile(histogram, share)}" for share in (0.5, 0.95, 0.99))


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
