"""Where machines share caps: what the books say goes to Redis, what Redis says goes to the books.

`mppool.machines` decides what to say and what follows from the answers. Here is what it must not know: the books, the
reports of the processes, the clock, the thread that calls, and the file with which a successor goes on.
"""

from __future__ import annotations

import logging
import random
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mppool.core.books import Books
from mppool.core.events import Share
from mppool.core.share import Demand
from mppool.machines.calling import Caller
from mppool.machines.machine import Machine, Part
from mppool.machines.needs import Ended, Need, Peaks, Told
from mppool.machines.settings import Settings
from mppool.machines.timing import Timing
from mppool.rendezvous.claim import write_in_place
from mppool.rendezvous.paths import ManagerPaths
from mppool.rendezvous.world import boot_id
from mppool.server.collecting import Collector
from mppool.server.delivery import Delivery
from mppool.server.processes import ProcessRegistry
from mppool.wire.messages import EndSessions

log = logging.getLogger(__name__)

MOST_EPOCHS = 16
"""So many servers of a machine are remembered."""

FAREWELL_S = 0.5
"""How long the leaving server waits until Redis knows."""

_EVERY_POOL = ""
"""In place of a pool's name: no pool is called so."""


def clock() -> float:
    """Seconds, also those in which the machine was suspended: its leases run out meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Kept(msgspec.Struct):
    """What a successor must know: who this machine is, and since when (in this boot) its last lease counts.

    epochs: of the servers that have stood in the labels of its sessions, the latest ones.
    """

    machine: str
    boot: str = ""
    since: float | None = None
    epochs: list[int] = []


class Leasing:
    """It belongs to the loop's thread, but for `_answers`, to which the caller's thread appends.

    _parts: what the books were told last, by pool. _looked: the call before which reports were asked for.
    """

    def __init__(
        self,
        settings: Settings,
        paths: ManagerPaths,
        epoch: int,
        wake: Callable[[], None],
    ) -> None:
        """wake: has the loop look at its deadlines; for any thread."""
        self._settings = settings
        self._timing = Timing(settings.lease_s)
        self._file = paths.machine
        self._wake = wake
        now = clock()
        self._kept = _read(self._file, now) or _Kept(secrets.token_hex(8))
        self.machine = Machine(
            self._kept.machine,
            socket.gethostname()[:64],
            epoch,
            self._timing,
            settings.fallback,
            now=now,
            since=self._kept.since,
            jitter=random.random,
            fresh=lambda: secrets.token_hex(8),
        )
        self._kept.epochs = self.machine.epochs = [*self._kept.epochs, epoch][-MOST_EPOCHS:]
        self._keep()
        self._answers: deque[tuple[int, Told | None, str]] = deque()
        self._caller = Caller(settings, paths.name, self._answered)
        self._parts: dict[str, Part] = {}
        self._peaks = Peaks()
        # When the lease of a machine has run out whose sessions were ended.
        self._expired: dict[str, float] = {}
        self._looked = -1.0
        self._was_lost = False

    def serve(
        self,
        books: Books,
        collector: Collector,
        processes: ProcessRegistry,
        delivery: Delivery,
    ) -> None:
        """These are the parts of the server with which it works from now on."""
        self._books, self._collector = books, collector
        self._processes, self._delivery = processes, delivery

    def _answered(self, number: int, told: Told | None, trouble: str) -> None:
        """In the caller's thread."""
        self._answers.append((number, told, trouble))
        self._wake()

    # --- the loop's thread -------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Take in answers, tell the books what is this machine's, call if that is due. now: of the loop's clock."""
        at = clock()
        while self._answers:
            number, told, trouble = self._answers.popleft()
            if told is None:
                self.machine.failed(number, trouble, at)
            else:
                self.machine.answered(number, told, at)
                self._keep()
                self._end_sessions_of(told.ended, at)
        self._tell_books(at, now)
        if self._look_at() <= at and self._looked != self.machine.next_call():
            self._looked = self.machine.next_call()
            self._collector.ask_briefly()
        if self.machine.is_due(at, self._pressing()):
            needs = self._needs()
            self._caller.submit(self.machine.call(at, needs, len(self._processes)))

    def _end_sessions_of(self, ended: list[Ended], at: float) -> None:
        """Have the processes end at the database what is still open there, before the books learn of more room."""
        if not self._settings.ends_expired:
            return
        for one in ended:
            expired_at = at - one.ago_ms / 1000
            known = self._expired.get(one.machine)
            if known is None or expired_at - known > self._timing.lease_s / 2:
                self._expired[one.machine] = expired_at
                log.warning("machine %s: its lease has run out", one.label)
                age = max(0.0, one.ago_ms / 1000)
                self._processes.tell_all(EndSessions(one.label, one.epochs, age))

    def deadline(self, now: float) -> float:
        """When `tick` is wanted next, by the loop's clock."""
        if self._answers:
            return now
        due = min(self.machine.due_at(self._pressing()), self.machine.next_phase(clock()))
        if self._looked != self.machine.next_call():
            due = min(due, self._look_at())
        return now + max(0.0, due - clock())

    def _look_at(self) -> float:
        """When to ask what is in use, so that it is known when the next call is due."""
        return self.machine.next_call() - self._timing.hurry_s / 2

    def _pressing(self) -> dict[str, Need]:
        """As `_needs`, but for what only the processes know: it is asked for at every turn of the loop."""
        return {
            pool: Need(demand.cap, 0, demand.has, _starves(demand), demand.known)
            for pool, demand in self._books.demands().items()
        }

    def _needs(self) -> dict[str, Need]:
        """What each pool has and wants: what was in use lately, and who waits."""
        needs = {}
        self._peaks.begin()
        for pool, demand in self._books.demands().items():
            names = demand.pools or (pool,)  # a budget is in use where its pools are
            contended = self.machine.is_contended(pool)
            lately_s = self._timing.lately_s if contended else self._timing.refresh_s
            unused = sum(self._collector.idle_for(one, lately_s) for one in names)
            waiting = max(demand.waiting, sum(map(self._collector.waiting, names)))
            found = max(demand.has - unused, 0) + waiting
            wants = max(self._peaks.note(pool, found, contended=contended), demand.keeps)
            if demand.cap is not None:
                wants = min(wants, demand.cap)
            needs[pool] = Need(demand.cap, wants, demand.has, _starves(demand), demand.known)
        return needs

    def _tell_books(self, at: float, now: float) -> None:
        """What has changed since it was said last."""
        is_lost = self.machine.phase(at) in ("waiting", "lost") and bool(self.machine.trouble)
        if is_lost != self._was_lost:
            self._was_lost = is_lost
            log.warning("%s", self.machine.why() if is_lost else "Redis gives leases again")
        new = self._part(_EVERY_POOL, at)
        changed = []
        for pool in (*self._books.demands(), _EVERY_POOL):
            part = self._part(pool, at)
            if self._parts.get(pool) != part:
                self._parts[pool] = part
                changed.append(Share(pool, *part))
        if changed:
            shares = [share for share in changed if share.pool != _EVERY_POOL]
            of_new = Share(_EVERY_POOL, *new)
            self._delivery.carry_out(self._books.take_shares(shares, of_new, now), now)

    def _part(self, pool: str, at: float) -> Part:
        return self.machine.part(pool, at)

    # --- the file ----------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Write down what a successor must know."""
        self._kept.boot, self._kept.since = boot_id(), self.machine.since
        try:
            write_in_place(self._file, msgspec.json.encode(self._kept))
        except OSError as error:
            # A successor closes what is open, and asks for a share as a newcomer.
            log.warning("%s cannot be written: %s", self._file, error.strerror)

    # --- statistics, and the end -------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """JSON-compatible: this machine's part, and the whole as Redis has told it last."""
        at, machine = clock(), self.machine
        told = machine.told
        return {
            "machine": machine.label,
            "id": machine.name,
            "redis": self._settings.where,
            "on_redis_lost": self._settings.on_redis_lost,
            "lease": self._timing.lease_s,
            "phase": machine.phase(at),
            "age": None if machine.since is None else at - machine.since,
            "trouble": machine.trouble,
            "machines": told.machines if told else 0,
            "processes": told.processes if told else 0,
            "pools": {
                one.pool: {
                    "share": None if one.share < 0 else one.share,
                    "max_size": None if one.cap < 0 else one.cap,
                    "taken": one.taken,
                    "wanted": one.wanted,
                }
                for one in (told.pools if told else ())
            },
        }

    def close(self, *, is_sure: bool) -> None:
        """The server leaves. Where nothing is held here, the other machines may have this one's share at once.

        is_sure: what is held is known; after a torn journal it may not be.
        """
        if is_sure and not self._books.slots_held():
            self._caller.submit(self.machine.goodbye(clock()))
        self._caller.stop(FAREWELL_S)


def _starves(demand: Demand) -> bool:
    """Whether somebody waits because this machine has no more."""
    return bool(demand.waiting) and demand.may_have is not None and demand.has >= demand.may_have


def _read(path: Path, now: float) -> _Kept | None:
    """What the last server here has left; its lease only where it is of this boot."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return None
    if kept.boot != boot_id() or (kept.since is not None and kept.since > now):
        kept.since = None
    return kept
