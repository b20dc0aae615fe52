"""What counters have come to, carried from one server to the next by the processes that saw them.

A server counts in its memory, and is gone with it. So its answer to a client that wants statistics has a second part,
which that process keeps, and says to the next server when it attaches, or wants statistics of it: what the books
had counted, what the dead had, and what each of the living had said. The next server adds that to what it counts
itself; of a process that lives on, and reports to it, it takes the report instead. So no counter goes backwards
while any process lives that saw it, and what was counted meanwhile is not lost either.

Several may tell: the latest word of the latest server is the base. What others saw is a floor, should the base
not know of it. Pure.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from mppool.ids import ProcessId
from mppool.stats.merge import ProcessFigures, Totals, add_counters, add_histograms
from mppool.stats.report import PoolReport

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
"""Larger views are not carried: no application has so many processes and pools."""


class Figures(msgspec.Struct, array_like=True):
    """Counters and histograms of one pool."""

    counters: dict[str, int] = {}
    histograms: dict[str, list[int]] = {}

    def add(self, counters: Mapping[str, int], histograms: Mapping[str, list[int]]) -> None:
        """Sum up."""
        add_counters(self.counters, counters)
        add_histograms(self.histograms, histograms)


class Seen(msgspec.Struct, array_like=True):
    """What the statistics of one server said. at: its monotonic clock. began: by pool, seconds since 1970."""

    epoch: int
    at: float
    began: dict[str, float]
    books: dict[str, dict[str, int]]
    dead: dict[str, Figures]
    living: list[tuple[ProcessId, dict[str, Figures]]]


class Carried:
    """What this server was told of earlier ones. epoch: its own; what is not older says nothing new."""

    def __init__(self, epoch: float) -> None:
        self._epoch = epoch
        self._latest: tuple[int, float] = (-1, 0.0)
        self._told: set[int] = set()
        self._heard: set[ProcessId] = set()
        self.began: dict[str, float] = {}
        self.books: dict[str, dict[str, int]] = {}
        self.dead: dict[str, Figures] = {}
        self.living: dict[ProcessId, dict[str, Figures]] = {}
        self._floor: dict[str, Figures] = {}

    def take_in(self, encoded: bytes) -> bool:
        """Take in what a process saw; True if that is news."""
        if not encoded or len(encoded) > MOST_BYTES or hash(encoded) in self._told:
            return False
        if len(self._told) > 1000:
            self._told.clear()
        self._told.add(hash(encoded))
        try:
            seen = msgspec.msgpack.decode(encoded, type=Seen)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("what a process saw of earlier counters cannot be read: %s", error)
            return False
        if seen.epoch >= self._epoch:
            return False
        self._raise_floor(seen)
        for pool, began in seen.began.items():
            self.began[pool] = min(began, self.began.get(pool, began))
        for pool, counters in seen.books.items():
            mine = self.books.setdefault(pool, {})
            for name, count in counters.items():
                mine[name] = max(count, mine.get(name, 0))
        if (seen.epoch, seen.at) > self._latest:
            self._latest = (seen.epoch, seen.at)
            self.dead = seen.dead
            self.living = {one: pools for one, pools in seen.living if one not in self._heard}
        return True

    def heard(self, process: ProcessId) -> None:
        """A process that lived before this server has reported to it: what others say of it is out of date."""
        self._heard.add(process)
        self.living.pop(process, None)

    def add_to(self, totals: Totals) -> Totals:
        """The totals of the dead, with those of earlier servers, and of processes that have not reported yet."""
        together = Totals()
        parts: list[tuple[str, Mapping[str, int], Mapping[str, list[int]]]] = [
            (pool, figures.counters, figures.histograms)
            for pools in (self.dead, *self.living.values())
            for pool, figures in pools.items()
        ]
        parts += [
            (pool, totals.counters.get(pool, {}), totals.histograms.get(pool, {}))
            for pool in {*totals.counters, *totals.histograms}
        ]
        for pool, counters, histograms in parts:
            add_counters(together.counters.setdefault(pool, {}), counters)
            add_histograms(together.histograms.setdefault(pool, {}), histograms)
        return together

    def lift(self, pool: str, counters: dict[str, int], histograms: dict[str, Any]) -> None:
        """Nothing of what somebody saw is more than what is shown."""
        floor = self._floor.get(pool)
        if floor is None:
            return
        for name, count in floor.counters.items():
            if counters.get(name, 0) < count:
                counters[name] = count
        for name, counts in floor.histograms.items():
            shown = histograms.get(name)
            if shown is not None and len(shown) == len(counts):
                shown[:] = map(max, shown, counts)

    def _raise_floor(self, seen: Seen) -> None:
        together: dict[str, Figures] = {}
        for pool, counters in seen.books.items():
            together.setdefault(pool, Figures({}, {})).add(counters, {})
        for pools in (seen.dead, *(pools for _, pools in seen.living)):
            for pool, figures in pools.items():
                together.setdefault(pool, Figures({}, {})).add(figures.counters, figures.histograms)
        for pool, figures in together.items():
            floor = self._floor.setdefault(pool, Figures({}, {}))
            for name, count in figures.counters.items():
                floor.counters[name] = max(count, floor.counters.get(name, 0))
            for name, counts in figures.histograms.items():
                before = floor.histograms.get(name, [])
                same = len(before) == len(counts)
                floor.histograms[name] = list(map(max, before, counts)) if same else list(counts)


def encoded_view(
    epoch: int,
    at: float,
    began: Mapping[str, float],
    books: Mapping[str, Mapping[str, int]],
    totals: Totals,
    processes: Iterable[ProcessFigures],
    carried: Carried,
) -> bytes:
    """What a process is to keep of an answer; empty where that is too much."""
    together = Totals()
    for pool, figures in carried.dead.items():
        add_counters(together.counters.setdefault(pool, {}), figures.counters)
        add_histograms(together.histograms.setdefault(pool, {}), figures.histograms)
    for pool, counters in totals.counters.items():
        add_counters(together.counters.setdefault(pool, {}), counters)
    for pool, histograms in totals.histograms.items():
        add_histograms(together.histograms.setdefault(pool, {}), histograms)
    dead = {
        pool: Figures(counters, together.histograms.get(pool, {}))
        for pool, counters in together.counters.items()
    }
    living = dict(carried.living)
    living.update({one.process: _figures(one.pools.values()) for one in processes if one.pools})
    seen = Seen(
        epoch, at, dict(began), {p: dict(c) for p, c in books.items()}, dead, list(living.items())
    )
    data = msgspec.msgpack.encode(seen)
    return data if len(data) <= MOST_BYTES else b""


def _figures(reports: Iterable[PoolReport]) -> dict[str, Figures]:
    return {report.pool: Figures(report.counters, report.histograms) for report in reports}
