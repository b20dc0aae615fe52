"""Who holds the resources of a pool, over all processes: for checkouts that wait in vain, and for wait_warn.

It takes the statistics of all processes, which nobody waits for: they are fetched by a chore, ahead of the end of a
timeout, and what was said is told for some seconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mppool.errors import PoolError
from mppool.logs import Log

if TYPE_CHECKING:
    from mppool.options import PoolOptions
    from mppool.process.waiter import LocalWaiter
    from mppool.worker.context import Context

log = Log("mppool")

MOST_NAMED = 5

FRESH_S = 5.0
"""What was said is told for so long; statistics of many resources cost the server something."""

AHEAD_S = 1.0
"""So long before the end of a timeout the holders are asked for, or in its middle, where that is later."""

SHORTEST_S = 0.2
"""A checkout with a shorter timeout has ended before anybody could answer."""

PAUSE_S = 1.0
"""So often at most slow waits are warned of, those of a moment together."""


class Line(Protocol):
    """Who waits."""

    def all_waiters(self) -> list[LocalWaiter]:
        """Those who wait now."""


class Holder(NamedTuple):
    """A lease. since: an instant of this process's clock. process: its label."""

    since: float
    pid: int
    process: str
    label: str
    thread: str

    def told(self, now: float) -> str:
        """For people."""
        what = f"{self.label!r} in " if self.label else ""
        process = f"{self.process} (pid {self.pid})" if self.process else f"pid {self.pid}"
        thread = f", thread {self.thread}" if self.thread else ""
        return f"{what}{process}{thread} for {max(0.0, now - self.since):.1f} s"


class Holders:
    """The leases of one pool, the oldest first, as they were said last. A forked child starts with nothing.

    _asked_at: when they were asked for last. _said_at: when they were said. Each is written by one chore at a time, or
    by the background thread; a stale value costs one question too many.
    _warned_at: when slow waits were warned of last.
    """

    def __init__(self, context: Context, pool: str, options: PoolOptions) -> None:
        self._context = context
        self._pool = pool
        self._wait_warn = options.wait_warn
        self._oldest: list[Holder] = []
        self._count = 0
        self._said_at = self._asked_at = self._warned_at = -math.inf

    # --- asking ------------------------------------------------------------------------------------------

    def expected_by(self, waiter: LocalWaiter) -> float:
        """When a waiting checkout wants something of this; infinity: it does not."""
        due = math.inf
        if self._wait_warn is not None and not waiter.was_warned_of:
            due = waiter.since + self._wait_warn
        if waiter.deadline is not None and not waiter.has_holders:
            whole = waiter.deadline - waiter.since
            if whole >= SHORTEST_S:
                ahead = AHEAD_S if whole > 2 * AHEAD_S else whole / 2
                due = min(due, waiter.deadline - ahead)
        return due

    def look(self, line: Line, now: float) -> float:
        """Ask on behalf of those who wait, and warn of slow waits, where that is due; when to look again."""
        again, slow, wanted = math.inf, [], False
        for waiter in line.all_waiters():
            if self.expected_by(waiter) <= now:
                if self._wait_warn is not None and now - waiter.since >= self._wait_warn:
                    slow.append(waiter)
                else:
                    waiter.has_holders = wanted = True
            again = min(again, self.expected_by(waiter))
        if slow and now < self._warned_at + PAUSE_S:
            again = self._warned_at + PAUSE_S
        elif slow:
            self._warned_at = now
            for waiter in slow:
                waiter.was_warned_of = True
            longest = min(slow, key=lambda waiter: waiter.since)
            self._ask(now, 0.0, lambda: self._warn(len(slow), longest))
            again = min([again, *map(self.expected_by, slow)])
        elif wanted:
            self._ask(now, FRESH_S, lambda: None)
        return again

    def _ask(self, now: float, fresh_s: float, then: Callable[[], None]) -> None:
        if now < self._asked_at + fresh_s:
            return
        self._asked_at = now
        self._context.chores.add(lambda: self._fetch(then))

    def _fetch(self, then: Callable[[], None]) -> None:
        try:
            stats = self._context.link.stats()
        except (PoolError, OSError, TimeoutError) as error:
            log.debug(
                "pool %r: who holds its resources could not be found out: %s", self._pool, error
            )
        else:
            if self._pool in stats.get("pools", {}):
                self._take_in(stats, monotonic())
        then()

    def _take_in(self, stats: dict[str, Any], now: float) -> None:
        processes = {one["pid"]: one["label"] for one in stats["processes"]}
        held = [
            one for one in stats["pools"][self._pool]["resources"] if one["held_for"] is not None
        ]
        held.sort(key=lambda one: -one["held_for"])
        self._count = len(held)
        self._oldest = [
            Holder(
                now - one["held_for"],
                one["pid"],
                processes.get(one["pid"], ""),
                one["label"],
                one["thread"],
            )
            for one in held[:MOST_NAMED]
        ]
        self._said_at = now

    # --- telling -----------------------------------------------------------------------------------------

    def told(self, now: float) -> str:
        """Who has held for longest, for the message of a checkout that got nothing; "" where nobody has said so."""
        if now >= self._said_at + FRESH_S or not self._oldest:
            return ""
        return f"; longest held: {self._named(self._oldest, now)}"

    def _named(self, oldest: Iterable[Holder], now: float) -> str:
        named = [holder.told(now) for holder in oldest]
        more = self._count - len(named)
        return "; ".join([*named, *([f"and {more} more"] if more > 0 else [])])

    def _warn(self, count: int, longest: LocalWaiter) -> None:
        now = monotonic()
        waits = "a checkout has" if count == 1 else f"{count} checkouts have"
        who = f", in thread {longest.who}" if longest.who else ""
        log.warning(
            "pool %r: %s waited longer than wait_warn=%g s in process %d (the longest for %.1f s%s). Held: %s",
            self._pool,
            waits,
            self._wait_warn,
            os.getpid(),
            now - longest.since,
            who,
            self._named(self._oldest, now) if now < self._said_at + FRESH_S else "not known",
        )
