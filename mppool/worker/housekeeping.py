"""What has to be done with resources when time has passed. Runs in the process's background thread.

There is no fixed interval: the thread sleeps until the first resource of this process can possibly be due.
A use only ever moves that instant into the future, so nothing needs to wake the thread earlier, but for
what is newly watched: see `Housekeeper.expects`.

Hooks do not run here, they are handed to the chores: one that hangs must not delay errands.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from mppool.core.events import IdleTooLong
from mppool.logs import Log
from mppool.worker.callers import noted
from mppool.worker.due import check_due, recycling_due
from mppool.worker.ending import LONG_CLOSE_S, close_limit, close_soon, give_up_closing
from mppool.worker.inventory import NEVER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mppool.worker.context import Context, Keeper
    from mppool.worker.inventory import PoolEntry
    from mppool.worker.local_pool import LocalPool

log = Log("mppool")

KEEPER_PAUSE_S = 5.0
"""A keeper that failed is looked at again after so long."""

LATE_RELEASE_S = 1.0
"""So long after the end of what is in use, it is looked at once more."""

CHECK_PAUSE_S = 0.25
"""While somebody waits, so long is nothing checked, and then looked whether that is over."""


class Housekeeper:
    """Recycling, background checks and overdue leases of one process.

    `_planned` is when the thread will look next; only that thread writes it. Others read it and append to
    `_expected` (atomic operations): a stale value costs one superfluous wake-up at most.
    `_changing` guards changes of `_keepers`, a tuple that is replaced as a whole, so that the thread needs no
    lock to go through it. `_keepers_due` belongs to the thread alone.
    """

    def __init__(self, context: Context, pools: Mapping[str, LocalPool]) -> None:
        self._context = context
        self._pools = pools
        self._planned = NEVER
        self._expected: deque[float] = deque()
        self._keepers: tuple[Keeper, ...] = ()
        self._keepers_due = NEVER
        self._changing = threading.Lock()

    def look_after(self, keeper: Keeper) -> None:
        """Have the thread look at it whenever it is awake, from now on; the thread is started if there is none."""
        if keeper not in self._keepers:
            with self._changing:
                if keeper not in self._keepers:
                    self._keepers = (*self._keepers, keeper)
        self._context.link.ensure_thread()
        self._context.wake()

    def expects(self, due: float) -> None:
        """Something is due at this instant, of which the thread may not know yet."""
        if due < self._planned:
            self._expected.append(due)
            self._context.wake()

    def seconds_left(self, now: float) -> float | None:
        """How long the thread may sleep; None: until somebody wakes it."""
        self._take_in()
        due = min(self._planned, self._keepers_due)
        return None if due == NEVER else max(0.0, due - now)

    def _take_in(self) -> None:
        while self._expected:
            self._planned = min(self._planned, self._expected.popleft())

    def run(self, now: float) -> None:
        """Do what is due, if anything is, and plan the next look."""
        self._take_in()
        self._look_at_keepers(now)  # also where none is left: nothing is due then any more
        if now < self._planned:
            return
        self._planned = NEVER  # before looking: what is expected meanwhile is noted again
        due = min(self._context.chores.look(now), self._context.openers.look(now))
        for local in list(self._pools.values()):
            line = local.idle.line
            due = min(due, self._look_after(local, now), line.give_up_spare(now))
            due = min(due, local.holders.look(line, now), *(one.look(now) for one in local.keepers))
        self._planned = due

    def _look_at_keepers(self, now: float) -> None:
        due = NEVER
        for keeper in self._keepers:
            try:
                due = min(due, keeper.look(now))
            except Exception:
                log.exception(
                    "manager %r: looking after a %s failed", self._context.name, type(keeper)
                )
                due = min(due, now + KEEPER_PAUSE_S)
        self._keepers_due = due
        if any(keeper.is_over() for keeper in self._keepers):
            with self._changing:
                self._keepers = tuple(one for one in self._keepers if not one.is_over())

    def _look_after(self, local: LocalPool, now: float) -> float:
        entries = local.entries()
        if not entries:
            return NEVER
        for entry in entries:
            if entry.state == "closing":
                _watch_close(local, entry, now)
            elif entry.lent_at and local.watched:
                self._watch_lease(local, entry, now)
        for entry in local.idle.shelves.take_all(lambda entry: recycling_due(local, entry) <= now):
            self._recycle(local, entry, now)
        idle = local.idle.shelves.all()
        may_check = not (local.checking or local.idle.attention)
        if may_check and any(check_due(local, entry) <= now for entry in idle):
            local.checking = True
            self._context.chores.add(lambda: check_idle(local))
        numbers = {entry.number for entry in idle}
        return min(self._due(local, entry, entry.number in numbers, now) for entry in entries)

    def _due(self, local: LocalPool, entry: PoolEntry, idle: bool, now: float) -> float:
        """When something can be due next; for what is in use: as if it were released now."""
        if entry.state == "closing":
            return NEVER if entry.warned else entry.closing_at + close_limit(entry)
        if entry.state != "open":
            return NEVER
        if idle:
            recycled, checked = recycling_due(local, entry), check_due(local, entry)
            if local.checking:
                return recycled
            # Due, and not begun: somebody waits, and then nothing is checked (see `Idle.borrow`).
            return min(recycled, checked if checked > now else now + CHECK_PAUSE_S)
        due = NEVER
        if local.watched and entry.lent_at and not entry.killed:
            due = entry.lent_at + (
                local.options.max_lease_kill or NEVER if entry.warned else local.first_lease_limit_s
            )
        # After its end its release closes it. One that had looked at the clock just before lays it on the shelf.
        ends = entry.retire_at if entry.retire_at > now else entry.retire_at + LATE_RELEASE_S
        if ends > now:
            due = min(due, ends)
        soonest = min(local.options.max_idle or NEVER, local.options.check_interval or NEVER)
        return min(due, now + soonest)

    def _recycle(self, local: LocalPool, entry: PoolEntry, now: float) -> None:
        """The entry was taken from its shelf, so it is ours."""
        if now >= entry.retire_at or local.closed:
            close_soon(entry, entry.retire_reason)
        else:
            local.idle.bring_back(entry, IdleTooLong(entry.number))

    def _watch_lease(self, local: LocalPool, entry: PoolEntry, now: float) -> None:
        lent_at = entry.lent_at
        if not lent_at:
            return
        age = now - lent_at
        warn, limit = local.options.max_lease_warn, local.options.max_lease_kill
        if limit is not None and age >= limit:
            if entry.inventory.kill(entry, lent_at):
                _complain(local, entry, age, f"max_lease_kill={limit:g} s; its resource is closed")
                local.durations.used(age)
                close_soon(entry, "killed")
        elif warn is not None and age >= warn and not entry.warned:
            entry.warned = True
            _complain(local, entry, age, f"max_lease_warn={warn:g} s")


def _complain(local: LocalPool, entry: PoolEntry, age: float, limit: str) -> None:
    log.warning(
        "pool %r: a lease%s is %.1f s old, longer than %s (taken in thread %r of process %d)%s",
        local.name,
        f" ({noted(entry)[0]!r})" if noted(entry)[0] else "",
        age,
        limit,
        entry.thread,
        os.getpid(),
        f" at\n{entry.stack}" if entry.stack else "; track_leaks=True would tell where",
        each=True,
    )


def _watch_close(local: LocalPool, entry: PoolEntry, now: float) -> None:
    if entry.doubtful and now >= entry.closing_at + close_limit(entry):
        give_up_closing(entry)
    elif not entry.warned and now >= entry.closing_at + LONG_CLOSE_S:
        entry.warned = True
        local.count("long_closes")
        log.warning(
            "pool %r: closing a resource has been taking %.1f s in process %d; its slot is not free before "
            "the close hook returns",
            local.name,
            now - entry.closing_at,
            os.getpid(),
            each=True,
        )


def check_idle(local: LocalPool) -> None:
    """Check what lies idle and is due, one resource after the other, while nobody wants one.

    Never more than one is off its shelf, so users hardly ever find it missing. A healthy one goes back to
    where it lay. Its uses and its last use do not change, so checks keep nothing alive.
    """
    try:
        for entry in local.idle.borrow(
            lambda entry: not local.closed and check_due(local, entry) <= monotonic()
        ):
            if local.is_healthy(entry):
                local.idle.put_where_it_lay(entry)
    finally:
        local.checking = False
        local.member.housekeeper.expects(monotonic())
