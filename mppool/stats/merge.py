"""Merges the books' figures with what the processes report into what `manager.stats()` returns. Pure.

Everything the books know is exact. What only a process knows (which of its slots are in use) is what it
said last; where it did not answer in time its entry says `"stale": True`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mppool.ids import ProcessId
from mppool.stats.names import BOUNDS, HISTOGRAMS, SERVER_COUNTERS, WORKER_COUNTERS
from mppool.stats.pins import REASONS
from mppool.stats.report import PoolReport, ResourceReport

IDENTITY_SEPARATOR = "\0"

AT_ONCE = 200
"""So many resources are looked at in one step: others must not wait for the statistics of thousands."""

T = TypeVar("T")


Lift = Callable[[str, dict[str, int], dict[str, Any]], None]


def _lift_nothing(pool: str, counters: dict[str, int], histograms: dict[str, Any]) -> None:
    """Nobody saw anything."""


@dataclass
class ProcessFigures:
    """What one process said last, by pool."""

    process: ProcessId
    label: str
    pools: Mapping[str, PoolReport]
    stale: bool


@dataclass
class Totals:
    """Counters and histograms of processes that are dead, per pool. They only ever grow."""

    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    histograms: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def bury(self, reports: Iterable[PoolReport]) -> None:
        """Keep the figures of a process that died."""
        for report in reports:
            counters = self.counters.setdefault(report.pool, {})
            add_counters(counters, report.counters)
            histograms = self.histograms.setdefault(report.pool, {})
            add_histograms(histograms, report.histograms)


def merged(
    snapshot: Mapping[str, Any],
    figures: Iterable[ProcessFigures],
    totals: Totals,
    *,
    name: str,
    server_pid: int,
    uptime: float,
    began: Mapping[str, float] | None = None,
    lift: Lift = _lift_nothing,
    pause: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The statistics of a manager, JSON-compatible, at once; `pause` is called after each of many steps.

    began: since when the counters of each pool count, in seconds since 1970. lift: is given the counters and
        histograms of a pool, to raise them to what somebody saw already.
    """
    known = list(figures)
    stats = head(snapshot, known, name=name, server_pid=server_pid, uptime=uptime)
    for pool, entry in snapshot["pools"].items():
        for part in pool_parts(entry, known, totals, (began or {}).get(pool), lift):
            if isinstance(part, dict):
                stats["pools"][pool] = part
            elif part:
                stats["pools"][pool]["resources"] += part
                pause()
    return stats


def head(
    snapshot: Mapping[str, Any],
    figures: Iterable[ProcessFigures],
    *,
    name: str,
    server_pid: int,
    uptime: float,
) -> dict[str, Any]:
    """The statistics of a manager without its pools."""
    known = {(one.process.pid, one.process.birth, one.process.member): one for one in figures}
    return {
        "name": name,
        "epoch": snapshot["epoch"],
        "server_pid": server_pid,
        "uptime": uptime,
        "processes": [
            _process_entry(entry, known.get((entry["pid"], entry["birth"], entry["member"])))
            for entry in snapshot["processes"]
        ],
        "pools": {},
        "budgets": snapshot.get("budgets", {}),
        "tokens": snapshot.get("tokens", []),
        "token_costs": snapshot.get("token_costs", []),
        "machines": snapshot.get("machines"),
    }


def _process_entry(entry: Mapping[str, Any], figures: ProcessFigures | None) -> dict[str, Any]:
    reports = list(figures.pools.values()) if figures else []
    return {
        "pid": entry["pid"],
        "label": entry["label"],
        "in_use": sum(report.in_use for report in reports),
        "idle": sum(report.idle for report in reports),
        "waiting": sum(report.waiting for report in reports),
        "stale": figures is None or figures.stale,
    }


def pool_parts(
    entry: Mapping[str, Any],
    figures: list[ProcessFigures],
    totals: Totals,
    began: float | None,
    lift: Lift,
) -> Iterator[dict[str, Any] | list[dict[str, Any]] | None]:
    """One pool, in steps that take a millisecond at most: its entry without resources, then those, some at a time.

    None: there is nothing to be had yet.
    """
    name = entry["name"]
    reporting = [(one, one.pools[name]) for one in figures if name in one.pools]
    slots: list[tuple[int, str, str, ProcessId]] = entry["slots"]
    slots_of: Counter[ProcessId] = Counter()
    settled = 0
    for some in _sliced(slots, AT_ONCE * 4):
        slots_of.update([row[3] for row in some])
        settled += sum([row[2] == "open" for row in some])
        yield None
    known: dict[int, ResourceReport] = {}
    for _, report in reporting:
        for resources in _sliced(report.resources, AT_ONCE * 4):
            known.update([(resource.number, resource) for resource in resources])
            yield None
    counters, histograms = _summed(entry, reporting, totals, lift)
    lanes: dict[str, dict[str, int]] | None = entry.get("lanes")
    yield {
        **_gauges(entry, reporting, settled),
        "lanes": None if lanes is None else _lanes(lanes, reporting),
        "pins": _pins(reporting),
        "counters": counters,
        "counters_began": began,
        "histograms": {
            kind: {"bounds": list(BOUNDS), "counts": counts} for kind, counts in histograms.items()
        },
        "longest_wait": max((report.longest_wait for _, report in reporting), default=0.0),
        "database": next((report.database for _, report in reporting if report.database), None),
        "processes": [
            *(_pool_process(one, report, slots_of) for one, report in reporting),
            *_silent_processes(figures, reporting, slots_of),
        ],
        "resources": [],
    }
    for some in _sliced(slots, AT_ONCE):
        yield [_resource(row, known.get(row[0])) for row in some]


def _sliced(whole: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def _summed(
    entry: Mapping[str, Any],
    reporting: list[tuple[ProcessFigures, PoolReport]],
    totals: Totals,
    lift: Lift,
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Counters and histograms of everybody, living and dead."""
    name = entry["name"]
    counters = dict.fromkeys((*SERVER_COUNTERS, *WORKER_COUNTERS), 0)
    histograms = {kind: [0] * (len(BOUNDS) + 1) for kind in HISTOGRAMS}
    add_counters(counters, totals.counters.get(name, {}))
    add_histograms(histograms, totals.histograms.get(name, {}))
    for _, report in reporting:
        add_counters(counters, report.counters)
        add_histograms(histograms, report.histograms)
    counters.update(entry["counters"])  # the books' own are exact, whatever a process says
    lift(name, counters, histograms)
    return counters, histograms


def _gauges(
    entry: Mapping[str, Any], reporting: list[tuple[ProcessFigures, PoolReport]], settled: int
) -> dict[str, Any]:
    """Processes report one after the other while slots move on: a slot may be reported twice, or by nobody.

    The books have each once; one that is not in use, opening or closing is idle.
    """
    gauges = {
        key: value
        for key, value in entry.items()
        if key not in {"counters", "slots", "born"}
        and isinstance(value, (str, int, float, bool, type(None)))
    }
    in_use = min(settled, sum(report.in_use for _, report in reporting))
    # The books know of those that have asked; others still hope for a release in their own process.
    waiting = max(entry["waiting"], sum(report.waiting for _, report in reporting))
    return {**gauges, "in_use": in_use, "idle": settled - in_use, "waiting": waiting}


def _lanes(
    lanes: Mapping[str, dict[str, int]], reporting: list[tuple[ProcessFigures, PoolReport]]
) -> dict[str, dict[str, int]]:
    """By name. Who uses what the processes know best: they lend without asking as long as nobody waits."""
    in_use = {name: sum(report.lanes.get(name, 0) for _, report in reporting) for name in lanes}
    return {name: {**lane, "in_use": in_use[name]} for name, lane in lanes.items()}


def _pins(
    reporting: list[tuple[ProcessFigures, PoolReport]],
) -> dict[str, dict[str, float]] | None:
    """By what ties leases to their sessions in the hosts that live."""
    hosts = [report.pins for _, report in reporting if report.pins]
    if not hosts:
        return None
    return {
        reason: {
            "leases": sum(pins.get(reason, (0, 0.0))[0] for pins in hosts),
            "seconds": sum(pins.get(reason, (0, 0.0))[1] for pins in hosts),
        }
        for reason in REASONS
    }


def _pool_process(
    one: ProcessFigures, report: PoolReport, slots_of: Mapping[ProcessId, int]
) -> dict[str, Any]:
    return {
        "pid": one.process.pid,
        "label": one.label,
        "in_use": report.in_use,
        "idle": report.idle,
        "waiting": report.waiting,
        "checkouts": report.counters.get("checkouts", 0),
        "slots": slots_of.get(one.process, 0),
        "stale": one.stale,
    }


def _silent_processes(
    figures: list[ProcessFigures],
    reporting: list[tuple[ProcessFigures, PoolReport]],
    slots_of: Mapping[ProcessId, int],
) -> list[dict[str, Any]]:
    """Those that have slots and never said what of them is in use: stopped ones, for example."""
    labels = {one.process: one.label for one in figures}
    said = {one.process for one, _ in reporting}
    unknown = {"in_use": 0, "idle": 0, "waiting": 0, "checkouts": 0}
    return [
        {
            "pid": process.pid,
            "label": labels.get(process, ""),
            **unknown,
            "slots": slots,
            "stale": True,
        }
        for process, slots in slots_of.items()
        if process not in said
    ]


def _resource(row: tuple[int, str, str, ProcessId], known: ResourceReport | None) -> dict[str, Any]:
    """A slot in the books, with what its process knows of the resource."""
    number, key, state, process = row
    own = {
        "id": number,
        "pid": process.pid,
        "state": known.state if known else state,
        "identity_key": _identity_of(key),
        "uses": known.uses if known else 0,
        "age": known.age if known else None,
        "idle_for": known.idle_for if known else None,
        "held_for": known.held_for if known else None,
        "description": known.description if known else "",
        "label": known.label if known else "",
        "thread": known.thread if known else "",
    }
    extra = known.extra if known else {}
    return {**{key: value for key, value in extra.items() if key not in own}, **own}


def _identity_of(key: str) -> str | None:
    """The identity within a key (fingerprint + NUL + identity); None for a key without one."""
    _, separator, identity = key.partition(IDENTITY_SEPARATOR)
    return identity if separator else None


def add_counters(into: dict[str, int], counters: Mapping[str, int]) -> None:
    """Sum up."""
    for name, count in counters.items():
        into[name] = into.get(name, 0) + count


def add_histograms(into: dict[str, list[int]], histograms: Mapping[str, list[int]]) -> None:
    """Sum up."""
    for name, counts in histograms.items():
        sums = into.setdefault(name, [0] * len(counts))
        if len(sums) == len(counts):  # another release may have other bounds: those cannot be added
            into[name] = [a + b for a, b in zip(sums, counts, strict=True)]
