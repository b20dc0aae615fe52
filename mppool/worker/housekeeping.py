"""What has to be done with resources when time has passed. Runs in the member's background thread.

There is no fixed interval: `next_due` says when the first resource of this process can possibly be due,
and the thread sleeps until then. A use only ever moves that instant into the future, so nothing needs to
wake the thread earlier, but for what is newly watched: see `Housekeeper.expects`.

Hooks do not run here, they are handed to the chores: one that hangs must not delay errands.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mppool.core.events import BackendFailed, IdleTooLong
from mppool.worker.entry import AT_ONCE, NEVER

if TYPE_CHECKING:
    from mppool.worker.entry import Entry
    from mppool.worker.face import Face
    from mppool.worker.member import Member

log = logging.getLogger("mppool")


class Housekeeper:
    """Recycling, background checks and overdue leases of one process.

    `_planned` is when the thread will look next. It is written by that thread, and read without a lock by
    those who want it to look earlier; a stale value costs one superfluous wake-up at most.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self._planned = NEVER

    def expects(self, due: float) -> None:
        """Something is due at this instant, of which the thread may not know yet."""
        if due < self._planned:
            self._planned = due
            self._member.wake()

    def seconds_left(self, now: float) -> float | None:
        """How long the thread may sleep; None: until somebody wakes it."""
        return None if self._planned == NEVER else max(0.0, self._planned - now)

    def run(self, now: float) -> None:
        """Do what is due, if anything is, and plan the next look."""
        if now < self._planned:
            return
        self._planned = NEVER  # before looking: what is expected meanwhile lowers it again
        due = NEVER
        for face in list(self._member.faces.values()):
            due = min(due, self._look_after(face, now))
        self._planned = min(self._planned, due)

    def _look_after(self, face: Face, now: float) -> float:
        with face.holdings.lock:
            entries = [entry for entry in face.holdings.table.values() if entry.face is face]
        if not entries:
            return NEVER
        for entry in entries:
            if entry.lent_at and face.watched:
                self._watch_lease(face, entry, now)
        for entry in face.take_idle(lambda entry: due_when_idle(face, entry) <= now):
            self._recycle(face, entry, now)
        idle = {entry.number for shelf in list(face.shelves.values()) for entry in list(shelf)}
        return min(self._due(face, entry, entry.number in idle, now) for entry in entries)

    def _due(self, face: Face, entry: Entry, idle: bool, now: float) -> float:
        """When something can be due next; for what is in use: as if it were released now."""
        if entry.state != "open":
            return NEVER
        if idle:
            return due_when_idle(face, entry)
        lease = NEVER
        if face.watched and entry.lent_at and not entry.killed:
            lease = entry.lent_at + (
                face.options.max_lease_kill or NEVER if entry.warned else face.first_lease_limit_s
            )
        soonest = min(face.options.max_idle or NEVER, face.options.check_interval or NEVER)
        return min(lease, now + soonest)

    def _recycle(self, face: Face, entry: Entry, now: float) -> None:
        """The entry was taken from its shelf, so it is ours."""
        if now >= entry.retire_at or face.closed:
            self._member.close_soon(entry, entry.retire_reason)
        elif face.options.max_idle is not None and now >= entry.kept_until:
            face.bring_back(entry, IdleTooLong(entry.number))
        else:
            self._member.chores.add(lambda: check_idle(face, entry))

    def _watch_lease(self, face: Face, entry: Entry, now: float) -> None:
        age = now - entry.lent_at
        warn, kill = face.options.max_lease_warn, face.options.max_lease_kill
        if kill is not None and age >= kill and face.kill(entry):
            log.warning(
                "pool %r: a lease is %.1f s old, longer than max_lease_kill=%g s; its resource is closed"
                " (taken in thread %r of process %d)%s",
                face.name, age, kill, entry.thread, self._member.pid(), _stack(entry),
            )  # fmt: skip
            face.observe("use", age)
            self._member.close_soon(entry, "killed")
        elif warn is not None and age >= warn and not entry.warned:
            entry.warned = True
            log.warning(
                "pool %r: a lease is %.1f s old, longer than max_lease_warn=%g s"
                " (taken in thread %r of process %d)%s",
                face.name, age, warn, entry.thread, self._member.pid(), _stack(entry),
            )  # fmt: skip


def due_when_idle(face: Face, entry: Entry) -> float:
    """When a resource that lies idle has to be looked after: retired, given up, or checked."""
    due = entry.retire_at
    if face.closed:
        due = AT_ONCE
    options = face.options
    if options.max_idle is not None:
        entry.kept_until = max(entry.kept_until, entry.released_at + options.max_idle)
        due = min(due, entry.kept_until)
    if options.check_interval is not None and face.check is not None:
        due = min(due, entry.checked_at + options.check_interval)
    return due


def check_idle(face: Face, entry: Entry) -> None:
    """Check a resource that was taken from its shelf; a healthy one goes back where it lay.

    Neither its uses nor its last use change, so checks keep nothing alive.
    """
    if face.is_healthy(entry):
        face.shelve_oldest(entry)


def report_backend_failure(face: Face, entry: Entry) -> None:
    """A check found the backend gone: what is as old as this resource is stale in all processes."""
    face.member.tell(BackendFailed(face.name, entry.key, entry.generation))


def _stack(entry: Entry) -> str:
    return f"\n{entry.stack}" if entry.stack else "; track_leaks=True would tell where"
