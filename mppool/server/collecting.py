"""Collects the reports of the processes for clients that want statistics."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from mppool.core.books import Books
from mppool.errors import ProtocolError
from mppool.ids import ProcessId, is_stopped, own_process
from mppool.server.connection import Connection
from mppool.server.processes import ProcessRegistry
from mppool.stats.carried import Carried, encoded_view
from mppool.stats.merge import ProcessFigures, Totals, head, pool_parts
from mppool.stats.report import PoolReport, ResourceReport
from mppool.wire.messages import Failed, Report, Stats, WantReport

STEP_S = 0.001
"""An answer is put together for so long at a time."""

VOLUNTEERED = 0
"""The request of a report for which no client waits."""

PATIENCE_S = 0.2
"""A process that is stopped, and has not reported by then, is shown with what it said last."""

BUSY_PATIENCE_S = 1.0
"""The same for one that is only busy, as on a machine with more to do than it can: its figures are worth more."""


class _Wanted:
    """One request for statistics, and whose reports it still waits for.

    deadline: when to look at those that are missing; busy_until: when to wait for none of them any longer.
    """

    __slots__ = ("busy_until", "connection", "deadline", "missing", "request")

    def __init__(
        self, connection: Connection, request: int, missing: set[ProcessId], now: float
    ) -> None:
        self.connection = connection
        self.request = request
        self.missing = missing
        self.deadline = now + PATIENCE_S
        self.busy_until = now + BUSY_PATIENCE_S


class _Said:
    """What a process said last.

    reports: of each pool. is_stale: it did not answer in time since.
    parts: of the report that is coming in, the resources so far, by pool; parts_of: of which request.
    """

    __slots__ = ("is_stale", "parts", "parts_of", "reports")

    def __init__(self) -> None:
        self.reports: dict[str, PoolReport] = {}
        self.is_stale = True
        self.parts: dict[str, list[ResourceReport]] = {}
        self.parts_of = -1

    def take_in(self, report: Report) -> bool:
        """Take in a report, or a part of one; True if it is whole now."""
        if report.request != self.parts_of:
            self.parts, self.parts_of = {}, report.request
        if report.more:
            for one in report.pools:
                self.parts.setdefault(one.pool, []).extend(one.resources)
            return False
        for one in report.pools:
            one.resources = self.parts.pop(one.pool, []) + one.resources
        self.parts = {}
        self.reports = {one.pool: one for one in report.pools}
        self.is_stale = False
        return True


class Collector:
    """Who wants statistics, and what the processes said. It belongs to the loop's thread.

    _said: by process, of those that live. _totals: of those that are dead. _carried: of earlier servers.
    _wanted: requests that wait for reports, oldest first. _answers: those that are being put together.
    """

    def __init__(self, manager: str, books: Books, processes: ProcessRegistry) -> None:
        self._manager = manager
        self._books = books
        self._processes = processes
        self._said: dict[ProcessId, _Said] = {}
        self._totals = Totals()
        self._carried = Carried(books.epoch)
        self._began: dict[str, float] = {}
        self._wanted: list[_Wanted] = []
        self._answers: deque[tuple[Connection, Iterator[Stats | None]]] = deque()
        self._requests = 0
        self._own = own_process()
        self._started = time.monotonic()
        # What is known of other machines; None: there are none.
        self.machines: Callable[[], dict[str, Any]] | None = None

    def saw(self, seen: bytes) -> None:
        """A process has said what it saw of earlier servers' counters."""
        if self._carried.take_in(seen):
            self._books.counted_earlier(self._carried.books)

    def wanted(self, connection: Connection, now: float, *, survey: bool = False) -> None:
        """A client wants statistics: ask all processes that can answer."""
        self._requests += 1
        missing = set()
        for known in self._processes:
            # One that has not even read what it was sent before is stopped; asking would only pile up.
            if known.is_ready():
                self._processes.tell(known.process, WantReport(self._requests, survey=survey))
                missing.add(known.process)
            else:
                self._said_by(known.process).is_stale = True
        wanted = _Wanted(connection, self._requests, missing, now)
        if missing:
            self._wanted.append(wanted)
        else:
            self._answer(wanted, now)

    def ask_briefly(self) -> None:
        """Have all processes say what is in use there, for `idle_for` and `waiting`; no client waits for it."""
        for known in self._processes:
            if known.is_ready():
                self._processes.tell(known.process, WantReport(VOLUNTEERED, brief=True))

    def idle_for(self, pool: str, seconds: float) -> int:
        """How many resources had lain idle for so long when their processes reported last."""
        return sum(
            resource.idle_for is not None and resource.idle_for >= seconds
            for report in self._reports_of(pool)
            for resource in report.resources
        )

    def waiting(self, pool: str) -> int:
        """How many checkouts waited when their processes reported last."""
        return sum(report.waiting for report in self._reports_of(pool))

    def _reports_of(self, pool: str) -> list[PoolReport]:
        return [said.reports[pool] for said in self._said.values() if pool in said.reports]

    def reported(self, connection: Connection, report: Report, now: float) -> None:
        """A process's figures have come."""
        process = connection.process
        if process is None or not self._processes.is_errand(connection):
            raise ProtocolError("a Report on a connection that is not an errand channel")
        if not self._said_by(process).take_in(report):
            return
        if process.birth <= self._own.birth:
            self._carried.heard(process)
        for wanted in self._wanted:
            if wanted.request <= report.request:
                wanted.missing.discard(process)
        self._answer_complete(now)

    def ended(self, connection: Connection) -> None:
        """A connection is gone, and what it wanted."""
        self._wanted = [one for one in self._wanted if one.connection is not connection]
        self._answers = deque(one for one in self._answers if one[0] is not connection)

    def died(self, process: ProcessId, now: float) -> None:
        """A process is dead: its figures stay in the totals."""
        said = self._said.pop(process, None)
        if said is not None:
            self._totals.bury(said.reports.values())
        for wanted in self._wanted:
            wanted.missing.discard(process)
        self._answer_complete(now)

    def tick(self, now: float) -> None:
        """Answer requests whose patience ends, and go on with an answer that is being put together."""
        if self._answers:
            self._go_on(now)
        for wanted in [one for one in self._wanted if one.deadline <= now]:
            if now < wanted.busy_until:
                self._wait_no_longer(
                    wanted, {process for process in wanted.missing if is_stopped(process.pid)}
                )
                wanted.deadline = wanted.busy_until
            else:
                self._wait_no_longer(wanted, set(wanted.missing))
        self._answer_complete(now)

    def _wait_no_longer(self, wanted: _Wanted, processes: set[ProcessId]) -> None:
        wanted.missing -= processes
        for process in processes:
            self._said_by(process).is_stale = True

    def deadline(self) -> float:
        """When `tick` is wanted next; infinity if no client waits."""
        if self._answers:
            return -math.inf  # as soon as everybody else has been served
        return min(one.deadline for one in self._wanted) if self._wanted else math.inf

    def _answer_complete(self, now: float) -> None:
        complete = [one for one in self._wanted if not one.missing]
        if complete:
            self._wanted = [one for one in self._wanted if one.missing]
        for wanted in complete:
            self._answer(wanted, now)

    def _answer(self, wanted: _Wanted, now: float) -> None:
        """Put an answer together: at once where that is short, else in steps, between which others are served."""
        self._answers.append((wanted.connection, self._parts(now)))
        self._go_on(now)

    def _go_on(self, now: float) -> None:
        until = time.monotonic() + STEP_S
        while self._answers:
            connection, parts = self._answers[0]
            stats = None
            while stats is None:
                stats = next(parts)
                if stats is None and time.monotonic() >= until:
                    return
            self._answers.popleft()
            try:
                connection.send(stats)
            except ProtocolError as error:  # larger than a frame may be
                connection.send(Failed(str(error)))

    def _parts(self, now: float) -> Iterator[Stats | None]:
        """The answer, in the end; None: there is more to be done."""
        snapshot = self._books.snapshot()
        snapshot["tokens"] = self._books.tokens.snapshot(now)
        snapshot["token_costs"] = self._books.tokens.costs_snapshot()
        if self.machines is not None:
            snapshot["machines"] = self.machines()
        self._note_beginnings(snapshot, now)
        figures = self._figures()
        totals = self._carried.add_to(self._totals)
        counters = {pool: entry["counters"] for pool, entry in snapshot["pools"].items()}
        seen = encoded_view(
            self._books.epoch, now, self._began, counters, self._totals, figures, self._carried
        )
        stats = head(
            snapshot,
            figures,
            name=self._manager,
            server_pid=self._own.pid,
            uptime=now - self._started,
        )
        resources: dict[str, list[bytes]] = {}
        lift = self._carried.lift
        for pool, entry in snapshot["pools"].items():
            for part in pool_parts(entry, figures, totals, self._began.get(pool), lift):
                if isinstance(part, dict):
                    stats["pools"][pool] = part
                elif part and len(entry["slots"]) > len(part):
                    resources.setdefault(pool, []).append(msgspec.msgpack.encode(part))
                elif part:
                    stats["pools"][pool]["resources"] = part
                yield None
        yield Stats(stats, seen, resources)

    def _said_by(self, process: ProcessId) -> _Said:
        said = self._said.get(process)
        if said is None:
            said = self._said[process] = _Said()
        return said

    def _figures(self) -> list[ProcessFigures]:
        figures = []
        for known in self._processes:
            said = self._said_by(known.process)
            figures.append(ProcessFigures(known.process, known.label, said.reports, said.is_stale))
        return figures

    def _note_beginnings(self, snapshot: Mapping[str, Any], now: float) -> None:
        for pool, entry in snapshot["pools"].items():
            if pool not in self._began:
                self._began[pool] = round(time.time() - (now - entry["born"]), 3)
        for pool, began in self._carried.began.items():
            self._began[pool] = min(began, self._began.get(pool, began))
