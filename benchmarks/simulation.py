"""A crowd over the real books, in virtual time: who gets what, what moves, and what that costs.

uniform   every thread of every process always has a job
scarce    the same, on half as many slots as there are processes
skewed    a quarter of the processes has nearly all the jobs
shifting  the same, and every `SHIFT` logins (or jobs) another quarter has them
bursty    every process has jobs for a while, and then none for a while
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from mppool.core.books import Books
from mppool.core.decisions import Close, Grant, Keep, Reclaim, Refuse
from mppool.core.events import (
    Abandoned,
    Attach,
    Checkout,
    Closed,
    Declaration,
    Declined,
    Opened,
    Returned,
    Starves,
)
from mppool.ids import ProcessId, Session, Ticket
from mppool.options import PoolOptions

SERVER_S = 0.0002
"""What a message takes from a process to the server, or back."""

LONGEST_HOPE_S = 0.1
LEAVE_S = 0.02
"""A process in which nobody waits any longer takes its tickets out of the queue after so long."""

STARVES_AFTER_S, STARVES_AFTER_OPENINGS, STARVES_AFTER_JOBS = 1.0, 12.0, 3.0
SHIFT = 40
QUIET = 20
"""The threads of the processes that have few jobs pause for so many times the duration of a job."""


class Load:
    """How many threads a process has, and for how long a thread pauses before its next job."""

    def __init__(self, kind: str, processes: int, login_s: float, job_s: float) -> None:
        self.kind = kind
        self.processes = processes
        self.job_s = job_s
        self.step_s = max(login_s, job_s)
        self.busy = max(1, processes // 4)
        self._bursts: dict[int, tuple[float, float]] = {}

    @property
    def slots(self) -> int:
        return max(1, self.processes // 2) if self.kind == "scarce" else 2 * self.processes

    @property
    def threads(self) -> int:
        """Of each process."""
        return {"scarce": 2, "uniform": 4, "bursty": 4}.get(self.kind, 8)

    def is_busy(self, index: int, now: float) -> bool:
        """Whether a process has more jobs than it can do now."""
        if self.kind == "skewed":
            return index < self.busy
        if self.kind == "shifting":
            phase = int(now / (SHIFT * self.step_s))
            return (index // self.busy - phase) % max(1, self.processes // self.busy) == 0
        return True

    def pause(self, index: int, thread: int, now: float, dice: random.Random) -> float:
        """For how long a thread has nothing to do."""
        if self.kind in ("skewed", "shifting") and not self.is_busy(index, now):
            if thread == 0:
                return QUIET * self.job_s * dice.uniform(0.5, 1.5)
            phase = SHIFT * self.step_s
            return phase - now % phase + 0.001 if self.kind == "shifting" else math.inf
        if self.kind == "bursty":
            ends, begins = self._bursts.get(index, (0.0, 0.0))
            if now >= begins:
                ends = now + 20 * self.step_s * dice.uniform(0.5, 1.5)
                begins = ends + 20 * self.step_s * dice.uniform(0.5, 1.5)
                self._bursts[index] = (ends, begins)
            return begins - now if now >= ends else 0.0
        return 0.0


class Simulation:
    """Processes with threads over the real books; everything else is a heap of things to come.

    Every thread takes a resource, works, gives it back, pauses, and so on.
    share: slots that each process has for itself; None: they share.
    """

    def __init__(
        self,
        load: Load,
        *,
        login_s: float,
        job_s: float,
        seed: int = 1,
        share: int | None = None,
        **options: Any,
    ) -> None:
        self.load = load
        self.login_s, self.job_s, self.share = login_s, job_s, share
        self.random = random.Random(seed)
        self.now = self.began = 0.0
        self.books = Books(1, jitter=self.random.random)
        self.coming: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.opened = self.held = self.peak = self.checkouts = 0
        self.worked = 0.0
        self.waits: list[float] = []
        self.served: Counter[ProcessId] = Counter()
        self.members = [
            SimulatedProcess(self, index, ProcessId(index + 1, 1))
            for index in range(load.processes)
        ]
        self.by_id = {member.process: member for member in self.members}
        declaration = Declaration(
            "p", PoolOptions(max_size=load.slots, timeout=None, **options), 0.0, "key"
        )
        for member in self.members:
            self.say(member, Attach("", [declaration], []))

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen in so many virtual seconds, give or take a tenth."""
        self.after(seconds * self.random.uniform(0.9, 1.1), what)

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen in exactly so many virtual seconds."""
        if seconds != math.inf:
            heapq.heappush(self.coming, (self.now + seconds, next(self.order), what))

    def say(self, member: SimulatedProcess, event: Any) -> None:
        """An event reaches the books; what they decide reaches the processes a moment later."""
        self.carry(self.books.apply(member.process, Session(member.process.pid), event, self.now))

    def carry(self, decisions: list[Any]) -> None:
        """Deliver what was decided, in order."""
        for process, decision in decisions:
            if process is not None:
                self.by_id[process].inbox.append(decision)
                self.later(SERVER_S, self.by_id[process].hear)

    def run(self, seconds: float, unmeasured: float = 0.0) -> None:
        """Let so much virtual time pass, after some that is not measured."""
        for member in self.members:
            for thread in range(self.load.threads):
                self.later(0.001, lambda m=member, t=thread: m.rest(t))  # type: ignore[misc]
        self._until(unmeasured)
        self.began = self.now
        self.opened = self.checkouts = 0
        self.worked = 0.0
        self.waits.clear()
        self.served.clear()
        self.books.pools["p"].counters["moved"] = 0
        self._until(unmeasured + seconds)
        for member in self.members:
            self.waits += [self.now - since for _, since in member.waiters]

    def _until(self, end: float) -> None:
        while True:
            due = self.books.next_deadline(self.now)
            coming = self.coming[0][0] if self.coming else math.inf
            if min(coming, math.inf if due is None else due) > end:
                break
            if due is not None and due <= coming:
                self.now = max(self.now, due)
                self.carry(self.books.tick(self.now))
            else:
                self.now, _, what = heapq.heappop(self.coming)
                what()
        self.now = end

    def done(self) -> float:
        """The work that was done, as a part of what the slots could do."""
        return self.worked / (self.load.slots * (self.now - self.began))

    def summary(self) -> dict[str, Any]:
        """What it took."""
        alike = [m for m in self.members if self.load.kind != "skewed" or m.index < self.load.busy]
        served = [self.served[member.process] for member in alike]
        return {
            "checkouts": self.checkouts,
            "open %": 100 * self.opened / max(1, self.checkouts),
            "moved": int(self.books.pools["p"].counters["moved"]),
            "longest wait": max(self.waits) / self.load.step_s,
            "least served": min(served) * len(served) / max(1, sum(served)),
        }


class SimulatedProcess:
    """A worker process: its shelf, its waiting threads, and what it was told.

    As in `mppool.worker`, without threads: a released resource stays with its process unless the process was
    told that others wait. Its tickets in the server's queue say how many resources it lacks; they are of no
    particular thread.
    """

    def __init__(self, world: Simulation, index: int, process: ProcessId) -> None:
        self.world = world
        self.index = index
        self.process = process
        self.inbox: deque[Any] = deque()
        self.shelf: deque[tuple[Any, float]] = deque()
        self.waiters: deque[tuple[int, float]] = deque()
        self.tickets: deque[Ticket] = deque()
        self.contended = False
        self.in_use = self.opening = self.share_open = 0
        self.opening_s = self.lease_s = 0.0
        self.given_at = 0.0
        self.waits_until = self.line_since = 0.0
        self._watches = False
        self._numbers = itertools.count(1)

    # --- threads ----------------------------------------------------------------------------------------------

    def rest(self, thread: int) -> None:
        """A thread has nothing to do for a while, or for no time at all."""
        world = self.world
        pause = world.load.pause(self.index, thread, world.now, world.random)
        if pause:
            world.after(pause, lambda: self.rest_or_want(thread))
        else:
            self.want(thread)

    def rest_or_want(self, thread: int) -> None:
        """A pause is over. Quiet threads then want one resource; others look again what there is to do."""
        load, now = self.world.load, self.world.now
        if load.kind in ("skewed", "shifting") and not load.is_busy(self.index, now) and thread:
            self.rest(thread)
        else:
            self.want(thread)

    def want(self, thread: int) -> None:
        """A thread wants a resource."""
        world = self.world
        if self.shelf:
            self.work(self.shelf.pop()[0], thread, world.now)
            return
        self.waiters.append((thread, world.now))
        if world.share is not None:
            if self.share_open < world.share:
                self.share_open += 1
                world.later(world.login_s, lambda: self.give(0))
            return
        if len(self.waiters) == 1:
            self.line_since = world.now
        self.ask()

    def ask(self) -> None:
        """Tell the server, if fewer tickets are queued than threads wait, that one more resource is lacking.

        Where something is in use, that is not before somebody has been waiting for a while without a break.
        """
        hope_s = self.line_since + min(self.opening_s / 2, LONGEST_HOPE_S) - self.world.now
        if self.in_use and hope_s > 1e-9:
            self.world.after(hope_s, self.ask)
        elif len(self.tickets) + self.opening < len(self.waiters):
            ticket = Ticket(next(self._numbers))
            self.tickets.append(ticket)
            self.world.say(self, Checkout("p", "key", ticket, None))
            self.watch()

    def work(self, number: Any, thread: int, since: float) -> None:
        """A thread has what it wanted."""
        world = self.world
        world.waits.append(world.now - since)
        world.checkouts += 1
        self.in_use += 1
        world.later(world.job_s, lambda began=world.now: self.release(number, thread, began))  # type: ignore[misc]

    def release(self, number: Any, thread: int, began: float) -> None:
        """A thread gives back."""
        world = self.world
        self.in_use -= 1
        world.served[self.process] += 1
        world.worked += world.now - max(began, world.began)
        self.given_at = world.now
        self.lease_s += 0.3 * (world.now - began - self.lease_s)
        if self.contended:
            self.bring_back(number)
        else:
            self.give(number)
        self.rest(thread)

    def give(self, number: Any) -> None:
        """To the oldest waiting thread, or to the shelf."""
        world = self.world
        if not self.waiters:
            if self.contended:
                self.bring_back(number)
            else:
                self.shelf.append((number, world.now))
            return
        thread, since = self.waiters.popleft()
        self.work(number, thread, since)
        if not self.waiters and self.tickets:
            self.waits_until = world.now
            world.after(LEAVE_S, self.leave)

    def leave(self) -> None:
        """Nobody has waited for a while: the tickets go."""
        if not self.waiters and self.world.now >= self.waits_until + LEAVE_S:
            while self.tickets:
                self.world.say(self, Abandoned(self.tickets.popleft()))

    def watch(self) -> None:
        """Say that this process starves if nothing is given back for long."""
        if self.waiters and self.tickets and not self._watches:
            self._watches = True
            self.world.after(max(0.0, self.starves_at() - self.world.now), self.look)

    def starves_at(self) -> float:
        """When the oldest waiter will have waited, and nothing will have been given back, for long."""
        limit = max(
            STARVES_AFTER_S,
            STARVES_AFTER_OPENINGS * self.opening_s,
            STARVES_AFTER_JOBS * self.lease_s,
        )
        given_at = self.world.now if self.opening else self.given_at
        return max(self.waiters[0][1], given_at) + limit

    def look(self) -> None:
        """Whether it starves."""
        self._watches = False
        if self.tickets and self.waiters and self.world.now >= self.starves_at():
            self.world.say(self, Starves(self.tickets[0]))
            self.given_at = self.world.now
        self.watch()

    # --- the server -------------------------------------------------------------------------------------------

    def hear(self) -> None:
        """One decision arrives."""
        world, decision = self.world, self.inbox.popleft()
        if isinstance(decision, Grant):
            self.granted(decision)
        elif isinstance(decision, Keep):
            self.give(decision.number)
        elif isinstance(decision, Close):
            world.later(SERVER_S, lambda: self.closed(decision.number))
        elif isinstance(decision, Reclaim):
            self.contended = decision.contended
            left, oldest = decision.sweep, decision.idle_for
            while left > 0 and self.shelf and world.now - self.shelf[0][1] >= oldest:
                number, since = self.shelf.popleft()
                self.bring_back(number, world.now - since)
                left -= 1
        else:
            assert not isinstance(decision, Refuse), decision

    def granted(self, grant: Grant) -> None:
        """A slot is ours. A thread beside those that wait opens it, if it is needed."""
        self.opening_s = grant.opening_s
        if grant.ticket in self.tickets:
            self.tickets.remove(grant.ticket)
        if not grant.fresh:
            self.give(grant.number)
        elif len(self.waiters) > self.opening:
            world = self.world
            world.opened += 1
            world.held += 1
            self.opening += 1
            world.peak = max(world.peak, world.held)
            world.later(world.login_s, lambda began=world.now: self.open(grant.number, began))  # type: ignore[misc]
        else:
            self.world.say(self, Declined(grant.number))

    def open(self, number: Any, began: float) -> None:
        """The resource is open."""
        self.opening -= 1
        self.given_at = self.world.now
        self.world.say(self, Opened(number, self.world.now - began))
        self.give(number)

    def closed(self, number: Any) -> None:
        """The resource is gone."""
        self.world.held -= 1
        self.world.say(self, Closed(number, "moved"))

    def bring_back(self, number: Any, idle_s: float = 0.0) -> None:
        """Ask the books what becomes of it."""
        self.world.say(self, Returned(number, idle_s))
