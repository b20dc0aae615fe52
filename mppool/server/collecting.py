"""Collects the processes' reports for those who want statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from mppool.core.books import Books
from mppool.errors import ProtocolError
from mppool.ids import ProcessId, own_process
from mppool.server.connection import Connection
from mppool.server.residents import Resident
from mppool.server.statistics import Totals, merged
from mppool.wire.messages import Failed, Report, Stats, WantReport

PATIENCE_S = 0.2
"""A process that has not reported by then is shown with what it said last."""


class _Wanted:
    """One request for statistics, and whose reports it still waits for."""

    __slots__ = ("connection", "deadline", "missing", "request")

    def __init__(
        self, connection: Connection, request: int, missing: set[ProcessId], deadline: float
    ) -> None:
        self.connection = connection
        self.request = request
        self.missing = missing
        self.deadline = deadline


class Collector:
    """Requests for statistics that wait for reports, oldest first; it belongs to the loop's thread."""

    def __init__(self, manager: str, books: Books, residents: Mapping[ProcessId, Resident]) -> None:
        self._manager = manager
        self._books = books
        self._residents = residents
        self._totals = Totals()
        self._wanted: list[_Wanted] = []
        self._requests = 0
        self._own_pid = own_process().pid
        self._started = time.monotonic()

    def wanted(self, connection: Connection, now: float) -> None:
        """Somebody wants statistics: ask all who can answer."""
        self._requests += 1
        missing = set()
        for process, resident in self._residents.items():
            errand = resident.errand
            # Whoever has not even read what it was sent before is stopped; asking would only pile up.
            if errand is not None and errand.broken is None and not errand.unsent:
                errand.send(WantReport(self._requests))
                missing.add(process)
            else:
                resident.stale = True
        wanted = _Wanted(connection, self._requests, missing, now + PATIENCE_S)
        if missing:
            self._wanted.append(wanted)
        else:
            self._answer(wanted, now)

    def reported(self, connection: Connection, report: Report, now: float) -> None:
        """A process's figures have come."""
        resident = self._residents.get(connection.process) if connection.process else None
        if resident is None or resident.errand is not connection:
            raise ProtocolError("a Report on a connection that is no errand channel")
        resident.reports = {one.pool: one for one in report.pools}
        resident.stale = False
        for wanted in self._wanted:
            if wanted.request <= report.request:
                wanted.missing.discard(resident.process)
        self._answer_complete(now)

    def ended(self, connection: Connection) -> None:
        """A connection is gone, and what it wanted."""
        self._wanted = [one for one in self._wanted if one.connection is not connection]

    def died(self, resident: Resident, now: float) -> None:
        """A process is dead: its figures stay in the totals."""
        self._totals.bury(resident.reports.values())
        for wanted in self._wanted:
            wanted.missing.discard(resident.process)
        self._answer_complete(now)

    def tick(self, now: float) -> None:
        """Answer those whose patience ends."""
        while self._wanted and self._wanted[0].deadline <= now:
            wanted = self._wanted.pop(0)
            for process in wanted.missing:
                if process in self._residents:
                    self._residents[process].stale = True
            self._answer(wanted, now)

    def deadline(self) -> float:
        """When `tick` is wanted next; infinity if nobody waits."""
        return self._wanted[0].deadline if self._wanted else math.inf

    def _answer_complete(self, now: float) -> None:
        complete = [one for one in self._wanted if not one.missing]
        if complete:
            self._wanted = [one for one in self._wanted if one.missing]
        for wanted in complete:
            self._answer(wanted, now)

    def _answer(self, wanted: _Wanted, now: float) -> None:
        snapshot = self._books.snapshot()
        snapshot["tokens"] = self._books.tokens.snapshot(now)
        snapshot["token_costs"] = self._books.tokens.costs_snapshot()
        stats = merged(
            snapshot,
            [resident.figures() for resident in self._residents.values()],
            self._totals,
            name=self._manager,
            server_pid=self._own_pid,
            uptime=now - self._started,
        )
        try:
            wanted.connection.send(Stats(stats))
        except ProtocolError as error:  # larger than a frame may be
            wanted.connection.send(Failed(str(error)))
