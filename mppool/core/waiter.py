"""One checkout that waits in the books."""

from __future__ import annotations

from mppool.ids import ProcessId, Ticket


class Waiter:
    """One queued checkout. `since` and `deadline` are instants of the server's monotonic clock.

    serial: counts arrivals. pool: the name of its pool. lane: see `Lanes`.
    """

    __slots__ = ("deadline", "key", "lane", "pool", "process", "serial", "since", "ticket")

    def __init__(
        self,
        process: ProcessId,
        ticket: Ticket,
        key: str,
        since: float,
        deadline: float,
        pool: str = "",
        lane: str = "",
    ) -> None:
        self.lane = lane
        self.process = process
        self.ticket = ticket
        self.key = key
        self.since = since
        self.deadline = deadline
        self.serial = 0
        self.pool = pool
