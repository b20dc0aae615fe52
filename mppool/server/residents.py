"""The processes that the server knows: attached ones, and those that only the journal tells of."""

from __future__ import annotations

from mppool.ids import ProcessId, Session
from mppool.server.connection import Connection
from mppool.server.statistics import ProcessFigures
from mppool.wire.messages import PoolReport


class Resident:
    """One living process.

    errand: its channel once it has attached, None while it cannot be told anything.
    pidfd: becomes readable at its death.
    reports: what it said last of each pool; `stale` once it did not answer in time.
    """

    __slots__ = ("errand", "label", "pidfd", "process", "reports", "session", "stale")

    def __init__(self, process: ProcessId, pidfd: int) -> None:
        self.process = process
        self.pidfd = pidfd
        self.session = Session(0)
        self.errand: Connection | None = None
        self.label = ""
        self.reports: dict[str, PoolReport] = {}
        self.stale = True

    def figures(self) -> ProcessFigures:
        """What the statistics show of it."""
        return ProcessFigures(self.process, self.label, self.reports, self.stale)
