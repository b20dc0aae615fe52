"""The processes that the server knows: attached ones, and those that only the journal tells of."""

from __future__ import annotations

from mppool.ids import ProcessId, Session
from mppool.server.connection import Connection
from mppool.stats.merge import ProcessFigures
from mppool.stats.report import PoolReport, ResourceReport


class Resident:
    """One living process.

    errand: its channel once it has attached, None while it cannot be told anything.
    pidfd: becomes readable at its death.
    reports: what it said last of each pool; `stale` once it did not answer in time.
    parts: of the report that is coming in, the resources so far, by pool; `parts_of`: of which request.
    """

    __slots__ = (
        "errand",
        "label",
        "parts",
        "parts_of",
        "pidfd",
        "process",
        "reports",
        "session",
        "stale",
    )

    def __init__(self, process: ProcessId, pidfd: int) -> None:
        self.process = process
        self.pidfd = pidfd
        self.session = Session(0)
        self.errand: Connection | None = None
        self.label = ""
        self.reports: dict[str, PoolReport] = {}
        self.parts: dict[str, list[ResourceReport]] = {}
        self.parts_of = -1
        self.stale = True

    def figures(self) -> ProcessFigures:
        """What the statistics show of it."""
        return ProcessFigures(self.process, self.label, self.reports, self.stale)
