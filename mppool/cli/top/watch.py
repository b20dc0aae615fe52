"""What happened between two looks at the statistics: rates, the longest wait, events. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

Stats = Mapping[str, Any]

MOST_EVENTS = 200

# Counters whose growth is worth a line, and what the line says.
_EVENTS = {
    "timeouts": "checkouts timed out",
    "refused": "checkouts refused at once",
    "open_failed": "openings failed",
    "unhealthy": "closed because a check failed",
    "killed": "overdue leases ended",
    "leaked": "leases never released",
    "died_with_process": "ended with their process",
    "hung_checks": "checks hung",
    "hook_errors": "hooks raised",
    "double_releases": "leases released twice",
}


class Event(NamedTuple):
    """Something that happened. at: seconds since 1970. bad: whether somebody should look."""

    at: float
    text: str
    bad: bool


class Watch:
    """Takes in one look after the other. Told the time."""

    def __init__(self) -> None:
        self.stats: Stats | None = None
        self.events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._rates: dict[str, dict[str, float]] = {}
        self._waits: dict[str, float | None] = {}
        self._at = 0.0
        self._has_looked = False

    def take(self, stats: Stats | None, now: float) -> None:
        """now: seconds since 1970. stats: None where no server runs."""
        before, seconds = self.stats, now - self._at
        self.stats, self._at = stats, now
        if stats is None:
            self._rates, self._waits = {}, {}
            if before is not None or not self._has_looked:
                self._note("no server runs", bad=True)
        else:
            if before is not None and before["epoch"] == stats["epoch"]:
                self._compare(before, stats, max(seconds, 1e-3))
            elif self._has_looked:
                self._note(f"server {stats['server_pid']} has taken over", bad=True)
        self._has_looked = True

    def rate(self, pool: str, counter: str) -> float:
        """So many a second, between the last two looks."""
        return self._rates.get(pool, {}).get(counter, 0.0)

    def longest_wait(self, pool: str) -> float | None:
        """The bound of the longest wait that ended between the last two looks; None: nothing waited."""
        return self._waits.get(pool)

    def _note(self, text: str, *, bad: bool) -> None:
        self.events.append(Event(self._at, text, bad))

    def _compare(self, before: Stats, after: Stats, seconds: float) -> None:
        self._note_processes(before, after)
        for name in sorted(set(after["pools"]) - set(before["pools"])):
            self._note(f"pool {name} was declared", bad=False)
        for name, pool in after["pools"].items():
            old = before["pools"].get(name)
            if old is not None:
                self._compare_pools(name, old, pool, seconds)

    def _note_processes(self, before: Stats, after: Stats) -> None:
        old = {one["pid"]: one for one in before["processes"]}
        new = {one["pid"]: one for one in after["processes"]}
        for pid in sorted(new.keys() - old.keys()):
            self._note(f"process {_named(new[pid])} came", bad=False)
        for pid in sorted(old.keys() - new.keys()):
            self._note(f"process {_named(old[pid])} left", bad=False)
        for pid in sorted(new.keys() & old.keys()):
            if new[pid]["stale"] and not old[pid]["stale"]:
                self._note(f"process {_named(new[pid])} does not answer", bad=True)

    def _compare_pools(self, name: str, before: Stats, after: Stats, seconds: float) -> None:
        old, new = before["counters"], after["counters"]
        grown = {key: max(0, count - old.get(key, 0)) for key, count in new.items()}
        self._rates[name] = {key: count / seconds for key, count in grown.items()}
        for key, text in _EVENTS.items():
            if grown.get(key):
                self._note(f"{name}: {text}: {grown[key]}", bad=True)
        if before["breaker"] != after["breaker"]:
            is_bad = after["breaker"] != "closed"
            self._note(f"{name}: the breaker is {after['breaker']}", bad=is_bad)
        if before["max_size"] != after["max_size"]:
            self._note(f"{name}: max_size is {after['max_size']} now", bad=False)
        if before["closed"] != after["closed"]:
            self._note(f"{name}: {'closed' if after['closed'] else 'open again'}", bad=False)
        self._waits[name] = _longest(before["histograms"]["wait"], after["histograms"]["wait"])


def _named(process: Stats) -> str:
    return f"{process['pid']} ({process['label']})" if process["label"] else f"{process['pid']}"


def _longest(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """The bound of the last bucket that grew; the first bucket is no wait worth the name."""
    grown = [now > then for now, then in zip(after["counts"], before["counts"], strict=True)]
    last = max((number for number, grew in enumerate(grown) if grew), default=0)
    bounds: list[float] = after["bounds"]
    return bounds[min(last, len(bounds) - 1)] if last else None
