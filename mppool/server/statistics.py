"""Merges the books' figures with what the processes report into what `manager.stats()` returns. Pure.

Everything the books know is exact. What only a process knows (which of its slots are in use) is what it
said last; where it did not answer in time its entry says `"stale": True`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mppool.core.statistics import BOUNDS, HISTOGRAMS, SERVER_COUNTERS, WORKER_COUNTERS
from mppool.ids import ProcessId
from mppool.wire.messages import PoolReport, ResourceReport

IDENTITY_SEPARATOR = "\0"


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
            _add_counters(counters, report.counters)
            histograms = self.histograms.setdefault(report.pool, {})
            _add_histograms(histograms, report.histograms)


def merged(
    snapshot: Mapping[str, Any],
    figures: Iterable[ProcessFigures],
    totals: Totals,
    *,
    name: str,
    server_pid: int,
    uptime: float,
) -> dict[str, Any]:
    """The statistics of a manager, JSON-compatible."""
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
        "pools": {
            pool: _pool_entry(entry, list(known.values()), totals)
            for pool, entry in snapshot["pools"].items()
        },
        "tokens": snapshot.get("tokens", []),
        "token_costs": snapshot.get("token_costs", []),
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


def _pool_entry(
    entry: Mapping[str, Any], figures: list[ProcessFigures], totals: Totals
) -> dict[str, Any]:
    """One pool: the books' gauges and counters, the processes' gauges, counters and histograms."""
    name = entry["name"]
    counters = dict.fromkeys((*SERVER_COUNTERS, *WORKER_COUNTERS), 0)
    histograms = {kind: [0] * (len(BOUNDS) + 1) for kind in HISTOGRAMS}
    _add_counters(counters, totals.counters.get(name, {}))
    _add_histograms(histograms, totals.histograms.get(name, {}))
    reporting = [(one, one.pools[name]) for one in figures if name in one.pools]
    for _, report in reporting:
        _add_counters(counters, report.counters)
        _add_histograms(histograms, report.histograms)
    counters.update(entry["counters"])  # the books' own are exact, whatever a process says
    slots_of: dict[int, int] = {}
    for slot in entry["slots"]:
        slots_of[slot["pid"]] = slots_of.get(slot["pid"], 0) + 1
    gauges = {
        key: value
        for key, value in entry.items()
        if key not in {"counters", "slots"}
        and isinstance(value, (str, int, float, bool, type(None)))
    }
    # Processes report one after the other while slots move on: a slot may be reported twice, or by nobody.
    # The books have each once; one that is not in use, opening or closing is idle.
    settled = sum(slot["state"] == "open" for slot in entry["slots"])
    in_use = min(settled, sum(report.in_use for _, report in reporting))
    return {
        **gauges,
        "in_use": in_use,
        "idle": settled - in_use,
        "counters": counters,
        "histograms": {
            kind: {"bounds": list(BOUNDS), "counts": counts} for kind, counts in histograms.items()
        },
        "processes": [
            *(_pool_process(one, report, slots_of) for one, report in reporting),
            *_silent_processes(figures, reporting, slots_of),
        ],
        "resources": _resources(entry["slots"], reporting),
    }


def _pool_process(
    one: ProcessFigures, report: PoolReport, slots_of: Mapping[int, int]
) -> dict[str, Any]:
    return {
        "pid": one.process.pid,
        "label": one.label,
        "in_use": report.in_use,
        "idle": report.idle,
        "waiting": report.waiting,
        "checkouts": report.counters.get("checkouts", 0),
        "slots": slots_of.get(one.process.pid, 0),
        "stale": one.stale,
    }


def _silent_processes(
    figures: list[ProcessFigures],
    reporting: list[tuple[ProcessFigures, PoolReport]],
    slots_of: Mapping[int, int],
) -> list[dict[str, Any]]:
    """Those that have slots and never said what of them is in use: stopped ones, for example."""
    labels = {one.process.pid: one.label for one in figures}
    said = {one.process.pid for one, _ in reporting}
    unknown = {"in_use": 0, "idle": 0, "waiting": 0, "checkouts": 0}
    return [
        {"pid": pid, "label": labels.get(pid, ""), **unknown, "slots": slots, "stale": True}
        for pid, slots in slots_of.items()
        if pid not in said
    ]


def _resources(
    slots: Iterable[Mapping[str, Any]], reporting: list[tuple[ProcessFigures, PoolReport]]
) -> list[dict[str, Any]]:
    """One entry per slot in the books, with what its process knows of the resource."""
    known: dict[int, ResourceReport] = {
        resource.number: resource for _, report in reporting for resource in report.resources
    }
    return [_resource(slot, known.get(slot["number"])) for slot in slots]


def _resource(slot: Mapping[str, Any], known: ResourceReport | None) -> dict[str, Any]:
    own = {
        "id": slot["number"],
        "pid": slot["pid"],
        "state": known.state if known else slot["state"],
        "identity_key": _identity_of(slot["key"]),
        "uses": known.uses if known else 0,
        "age": known.age if known else None,
        "idle_for": known.idle_for if known else None,
        "held_for": known.held_for if known else None,
        "description": known.description if known else "",
    }
    extra = known.extra if known else {}
    return {**{key: value for key, value in extra.items() if key not in own}, **own}


def _identity_of(key: str) -> str | None:
    """The identity within a key (fingerprint + NUL + identity); None for a key without one."""
    _, separator, identity = key.partition(IDENTITY_SEPARATOR)
    return identity if separator else None


def _add_counters(into: dict[str, int], counters: Mapping[str, int]) -> None:
    for name, count in counters.items():
        into[name] = into.get(name, 0) + count


def _add_histograms(into: dict[str, list[int]], histograms: Mapping[str, list[int]]) -> None:
    for name, counts in histograms.items():
        sums = into.setdefault(name, [0] * len(counts))
        if len(sums) == len(counts):  # another release may have other bounds: those cannot be added
            into[name] = [a + b for a, b in zip(sums, counts, strict=True)]
