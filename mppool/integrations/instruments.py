"""What is measured, under the names of OpenTelemetry's semantic conventions: one table for all exporters. Pure.

Everything is read from `manager.stats()`, which covers all processes. So one exporter in one process is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Kind = Literal["gauge", "sum", "counter"]
"""gauge: a value; sum: a value that can be added up over attributes; counter: it only grows."""

Stats = Mapping[str, Any]
Attributes = dict[str, str]
Reading = tuple[Attributes, float]

POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
MANAGER = "mppool.manager"
BUDGET = "mppool.budget.name"
LANE = "mppool.lane.name"

OF_POOL = (MANAGER, POOL_NAME)


class Instrument(NamedTuple):
    """A name, and how its values are read from the statistics of a manager."""

    name: str
    kind: Kind
    unit: str
    description: str
    read: Callable[[Stats], Iterator[Reading]]
    attributes: tuple[str, ...]


class Durations(NamedTuple):
    """A histogram. `key`: its name in the statistics of a pool."""

    name: str
    description: str
    key: str


DURATIONS: tuple[Durations, ...] = (
    Durations("db.client.connection.create_time", "Time that it took to open a resource", "open"),
    Durations("db.client.connection.wait_time", "Time that checkouts waited", "wait"),
    Durations("db.client.connection.use_time", "Time from a checkout to its release", "use"),
)

COUNTERS: dict[str, str] = {
    "checkouts": "Resources that were lent",
    "opened": "Resources that were opened",
    "open_failed": "Openings that failed",
    "closed": "Resources that were closed",
    "refused": "Checkouts that were refused at once: too many waiting, or the breaker is open",
    "expired_idle": "Resources closed because they were idle for max_idle",
    "expired_lifetime": "Resources closed at the end of max_lifetime",
    "worn_out": "Resources closed after max_uses checkouts",
    "unhealthy": "Resources closed because a check failed",
    "killed": "Leases ended after max_lease_kill",
    "leaked": "Leases that were garbage-collected without a release",
    "moved": "Resources closed in one process so that another could open one",
    "evicted_identities": "Identities whose idle resources were closed to make room",
    "died_with_process": "Resources that ended with their process",
    "double_releases": "Releases of a lease that had been released already",
    "recovered": "Leases that an interrupted checkout left behind, and that were taken back",
    "checks": "Checks of resources",
    "check_errors": "Checks that raised",
    "hung_checks": "Checks that were given up after check_timeout",
    "hook_errors": "Other hooks that raised",
    "long_closes": "Closes that took too long",
    "reopened": "Resources replaced at checkout because their token had changed",
}
"""Counters of a pool and their descriptions. `timeouts` is not here: it has a standard name."""

_BREAKER_STATES = ("closed", "open", "probing")


def of_pool(stats: Stats, pool: Stats) -> Attributes:
    """The attributes of everything that is said about one pool."""
    return {MANAGER: stats["name"], POOL_NAME: pool["name"]}


def _gauge(key: str) -> Callable[[Stats], Iterator[Reading]]:
    def read(stats: Stats) -> Iterator[Reading]:
        for pool in stats["pools"].values():
            if pool.get(key) is not None:  # no cap, no share, or a server of an older release
                yield of_pool(stats, pool), pool[key]

    return read


def _counter(key: str) -> Callable[[Stats], Iterator[Reading]]:
    def read(stats: Stats) -> Iterator[Reading]:
        for pool in stats["pools"].values():
            yield of_pool(stats, pool), pool["counters"].get(key, 0)

    return read


def _count(stats: Stats) -> Iterator[Reading]:
    for pool in stats["pools"].values():
        for state, key in (("idle", "idle"), ("used", "in_use")):
            yield {**of_pool(stats, pool), STATE: state}, pool[key]


def _of_budgets(key: str) -> Callable[[Stats], Iterator[Reading]]:
    def read(stats: Stats) -> Iterator[Reading]:
        for budget in stats.get("budgets", {}).values():
            yield {MANAGER: stats["name"], BUDGET: budget["name"]}, budget[key]

    return read


def _of_lanes(key: str) -> Callable[[Stats], Iterator[Reading]]:
    def read(stats: Stats) -> Iterator[Reading]:
        for pool in stats["pools"].values():
            for name, lane in (pool.get("lanes") or {}).items():
                yield {**of_pool(stats, pool), LANE: name}, lane[key]

    return read


def _breaker(stats: Stats) -> Iterator[Reading]:
    for pool in stats["pools"].values():
        for state in _BREAKER_STATES:
            yield {**of_pool(stats, pool), "state": state}, float(pool["breaker"] == state)


def _oldest_lease(stats: Stats) -> Iterator[Reading]:
    for pool in stats["pools"].values():
        held = [one["held_for"] for one in pool["resources"] if one["held_for"] is not None]
        yield of_pool(stats, pool), max(held, default=0.0)


def _longest_wait(stats: Stats) -> Iterator[Reading]:
    for pool in stats["pools"].values():
        yield of_pool(stats, pool), pool.get("longest_wait", 0.0)


def _processes(stats: Stats) -> Iterator[Reading]:
    silent = sum(one["stale"] for one in stats["processes"])
    attributes = {MANAGER: stats["name"]}
    yield {**attributes, "state": "answering"}, len(stats["processes"]) - silent
    yield {**attributes, "state": "silent"}, silent


def _uptime(stats: Stats) -> Iterator[Reading]:
    yield {MANAGER: stats["name"]}, stats["uptime"]


def _token_expiry(stats: Stats) -> Iterator[Reading]:
    left = [one["expires_in"] for one in stats["tokens"] if one["expires_in"] is not None]
    if left:
        yield {MANAGER: stats["name"]}, min(left)


def _machines(stats: Stats) -> Iterator[Reading]:
    known = stats.get("machines")
    if known is not None:
        yield {MANAGER: stats["name"]}, known["machines"]


def _lease_age(stats: Stats) -> Iterator[Reading]:
    known = stats.get("machines")
    if known is not None and known["age"] is not None:
        yield {MANAGER: stats["name"]}, known["age"]


INSTRUMENTS: tuple[Instrument, ...] = (
    Instrument(
        "db.client.connection.count", "sum", "{connection}",
        "Open resources, by state: idle or used", _count, (*OF_POOL, STATE),
    ),
    Instrument(
        "db.client.connection.max", "sum", "{connection}",
        "max_size; absent without a cap", _gauge("max_size"), OF_POOL,
    ),
    Instrument(
        "db.client.connection.pending_requests", "sum", "{request}",
        "Checkouts that wait", _gauge("waiting"), OF_POOL,
    ),
    Instrument(
        "db.client.connection.timeouts", "counter", "{timeout}",
        "Checkouts that timed out", _counter("timeouts"), OF_POOL,
    ),
    Instrument(
        "mppool.opening", "sum", "{connection}",
        "Resources that are being opened", _gauge("opening"), OF_POOL,
    ),
    Instrument(
        "mppool.min_size", "sum", "{connection}",
        "Resources that are kept open", _gauge("min_size"), OF_POOL,
    ),
    Instrument(
        "mppool.identities", "sum", "{identity}",
        "Identities that have resources", _gauge("identities"), OF_POOL,
    ),
    Instrument(
        "mppool.breaker", "gauge", "1",
        "1 for the state of the circuit breaker (closed, open or probing), else 0",
        _breaker, (*OF_POOL, "state"),
    ),
    Instrument(
        "mppool.oldest_lease", "gauge", "s",
        "Age of the oldest lease; 0 if nothing is lent", _oldest_lease, OF_POOL,
    ),
    Instrument(
        "mppool.longest_wait", "gauge", "s",
        "How long the oldest waiting checkout has waited; 0 if none waits", _longest_wait, OF_POOL,
    ),
    Instrument(
        "mppool.budget.max", "sum", "{connection}",
        "max_size of a budget, which several pools share", _of_budgets("max_size"), (MANAGER, BUDGET),
    ),
    Instrument(
        "mppool.budget.size", "sum", "{connection}",
        "Resources of all pools of a budget", _of_budgets("size"), (MANAGER, BUDGET),
    ),
    Instrument(
        "mppool.budget.pending_requests", "sum", "{request}",
        "Checkouts that wait in all pools of a budget", _of_budgets("waiting"), (MANAGER, BUDGET),
    ),
    Instrument(
        "mppool.lane.reserved", "sum", "{connection}",
        "Resources that a lane has a right to", _of_lanes("reserved"), (*OF_POOL, LANE),
    ),
    Instrument(
        "mppool.lane.in_use", "sum", "{connection}",
        "Resources that are lent to a lane", _of_lanes("in_use"), (*OF_POOL, LANE),
    ),
    Instrument(
        "mppool.lane.pending_requests", "sum", "{request}",
        "Checkouts that wait in a lane", _of_lanes("waiting"), (*OF_POOL, LANE),
    ),
    Instrument(
        "mppool.processes", "sum", "{process}",
        "Attached processes, by state: answering or silent", _processes, (MANAGER, "state"),
    ),
    Instrument(
        "mppool.share", "sum", "{connection}",
        "What other machines leave to this one of max_size; absent where machines share no caps",
        _gauge("share"), OF_POOL,
    ),
    Instrument(
        "mppool.machines", "sum", "{machine}",
        "Machines that share the caps; absent where none do", _machines, (MANAGER,),
    ),
    Instrument(
        "mppool.lease_age", "gauge", "s",
        "Time since the start of this machine's lease; absent where machines share no caps",
        _lease_age, (MANAGER,),
    ),
    Instrument(
        "mppool.uptime", "gauge", "s", "Time since the server started", _uptime, (MANAGER,),
    ),
    Instrument(
        "mppool.token_expires_in", "gauge", "s",
        "Time until the first of the shared tokens expires; absent without one",
        _token_expiry, (MANAGER,),
    ),
    *(
        Instrument(f"mppool.{key}", "counter", "1", description, _counter(key), OF_POOL)
        for key, description in COUNTERS.items()
    ),
)  # fmt: skip


def middles(bounds: Sequence[float]) -> list[float]:
    """A time that stands for each bucket: its middle; for the last one, which has no end, its beginning."""
    lower = [0.0, *bounds]
    return [(low + high) / 2 for low, high in zip(lower, bounds, strict=False)] + [bounds[-1]]


def estimated_sum(histogram: Mapping[str, Sequence[float]]) -> float:
    """The sum of all durations in a histogram, as far as its buckets tell."""
    counts = histogram["counts"]
    return sum(n * middle for n, middle in zip(counts, middles(histogram["bounds"]), strict=True))
