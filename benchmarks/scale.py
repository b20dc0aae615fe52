"""The books alone, without a server: what an event costs when there is much, and who gets what in a crowd."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from benchmarks.command import command
from benchmarks.measuring import interleaved
from benchmarks.tables import Table
from mppool.core.books import Books
from mppool.core.decisions import Close, Grant, Keep, Reclaim, Refuse
from mppool.core.events import Abandoned, Attach, Checkout, Closed, Declaration, Opened, Returned
from mppool.ids import ProcessId, Session, Ticket
from mppool.options import PoolOptions

SIZES = (10, 1_000, 100_000)
PROCESSES = 10


def run(quick: bool) -> list[Table]:
    """Costs per event, then the simulation."""
    return [*(costs(what, quick) for what in CROWDS), *simulation(quick)]


# --- what an event costs --------------------------------------------------------------------------------------


class Desk:
    """Books with processes that do at once what is decided."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.books = Books(1)
        self.tickets = itertools.count(1)
        self.processes = [ProcessId(pid, 1) for pid in range(1, PROCESSES + 1)]
        declaration = Declaration("p", PoolOptions(**options), 0.0, "key")
        for process in self.processes:
            self.say(process, Attach("", [declaration], []))

    def say(self, process: ProcessId, event: Any) -> list[Any]:
        """Tell the books; what they decided for this process."""
        decided = self.books.apply(process, Session(process.pid), event, self.now)
        return [decision for to, decision in decided if to == process]

    def ask(self, process: ProcessId, key: str = "key") -> tuple[Ticket, Any]:
        """A checkout, and the answer to it."""
        ticket = Ticket(next(self.tickets))
        answers = self.say(process, Checkout("p", key, ticket, None))
        return ticket, next(a for a in answers if getattr(a, "ticket", None) == ticket)

    def open(self, process: ProcessId, key: str = "key") -> Grant:
        """A checkout that is granted, with its opening."""
        _, grant = self.ask(process, key)
        assert isinstance(grant, Grant)
        self.say(process, Opened(grant.number, 0.001))
        return grant

    def owner(self, index: int) -> ProcessId:
        """Deals things out to the processes."""
        return self.processes[index % PROCESSES]


def _with_slots(size: int) -> Callable[[], None]:
    """Beside so many open slots, one more is opened, brought back, kept, and closed."""
    desk = Desk(max_size=size + 1)
    for index in range(size):
        desk.open(desk.owner(index))
    return lambda: _come_and_go(desk)


def _with_waiters(size: int) -> Callable[[], None]:
    """While so many wait in vain, one more joins and gives up, and a slot is brought back and granted."""
    desk = Desk(max_size=PROCESSES)
    grants = deque(desk.open(process) for process in desk.processes)
    for index in range(size):
        desk.ask(desk.owner(index))

    def once() -> None:
        process = desk.processes[0]
        ticket, _ = desk.ask(process)
        desk.say(process, Abandoned(ticket))
        desk.say(process, Returned(grants[0].number))
        desk.ask(process)  # in place of whoever was served
        desk.books.next_deadline(desk.now)

    return once


def _with_identities(size: int) -> Callable[[], None]:
    """Beside a slot for each of so many identities, one more comes and goes."""
    desk = Desk(max_size=size + 1)
    for index in range(size):
        desk.open(desk.owner(index), f"key of {index}")
    return lambda: _come_and_go(desk, "key of somebody new")


def _with_waiting_identities(size: int) -> Callable[[], None]:
    """While somebody of each of so many identities waits, one more comes and gives up."""
    desk = Desk(max_size=1)
    desk.open(desk.processes[0])
    for index in range(size):
        desk.ask(desk.owner(index), f"key of {index}")

    def once() -> None:
        process = desk.processes[0]
        ticket, _ = desk.ask(process, "key of somebody new")
        desk.say(process, Abandoned(ticket))
        desk.books.next_deadline(desk.now)

    return once


def _come_and_go(desk: Desk, key: str = "key") -> None:
    process = desk.processes[0]
    grant = desk.open(process, key)
    desk.say(process, Returned(grant.number))
    desk.say(process, Closed(grant.number, "discarded"))
    desk.books.next_deadline(desk.now)
    desk.books.tick(desk.now)


CROWDS: dict[str, Callable[[int], Callable[[], None]]] = {
    "slots": _with_slots,
    "waiters": _with_waiters,
    "identities": _with_identities,
    "waiting identities": _with_waiting_identities,
}


def costs(what: str, quick: bool) -> Table:
    """A few events, beside 10, 1,000 and 100,000 of something."""
    sizes, rounds, repetitions = (SIZES[:2], 2, 20) if quick else (SIZES, 15, 200)
    prepared = {f"{size:,} {what}": CROWDS[what](size) for size in sizes}

    def microseconds(once: Callable[[], None]) -> float:
        began = time.perf_counter()
        for _ in range(repetitions):
            once()
        return (time.perf_counter() - began) / repetitions * 1e6

    samples = interleaved(
        {name: lambda o=o: microseconds(o) for name, o in prepared.items()}, rounds
    )
    return Table(
        f"scale_{what.replace(' ', '_')}",
        f"The books with many {what}",
        "µs for a few events",
        samples,
        (f"10 {what}",),
        notes=[(CROWDS[what].__doc__ or "").strip()],
        aims=["no more than a logarithm: log2(100,000) / log2(10) is 5"],
    )


# --- a crowd, simulated ---------------------------------------------------------------------------------------

SERVER_S, OPEN_S, JOB_S, THINK_S = 0.0002, 0.02, 0.01, 0.005


class Simulation:
    """Processes with threads over the real books; everything else is a heap of things to come.

    Every thread takes a resource, works, gives it back, thinks, and so on. As in the worker, a released
    resource stays with its process unless the process was told that others wait; so most of this is
    what mppool.worker does, without threads and in virtual time.
    """

    def __init__(self, processes: int, threads: int, slots: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.books = Books(1, jitter=self.random.random)
        self.coming: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.opened = self.held = self.peak = 0
        self.waits: list[float] = []
        self.served: Counter[ProcessId] = Counter()
        self.members = [
            SimulatedProcess(self, ProcessId(pid, 1), threads) for pid in range(1, processes + 1)
        ]
        self.by_id = {member.process: member for member in self.members}
        declaration = Declaration("p", PoolOptions(max_size=slots, timeout=None), 0.0, "key")
        for member in self.members:
            self.say(member, Attach("", [declaration], []))

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen in so many virtual seconds, give or take a tenth."""
        at = self.now + seconds * self.random.uniform(0.9, 1.1)
        heapq.heappush(self.coming, (at, next(self.order), what))

    def say(self, member: SimulatedProcess, event: Any) -> None:
        """An event reaches the books; what they decide reaches the processes a moment later."""
        self.carry(self.books.apply(member.process, Session(member.process.pid), event, self.now))

    def carry(self, decisions: list[Any]) -> None:
        """Deliver what was decided, in order."""
        for process, decision in decisions:
            if process is not None:
                self.by_id[process].inbox.append(decision)
                self.later(SERVER_S, self.by_id[process].hear)

    def run(self, seconds: float) -> None:
        """Let so much virtual time pass."""
        for member in self.members:
            for _ in range(member.threads):
                self.later(THINK_S, member.want)
        end = self.now + seconds
        while self.now < end:
            due = self.books.next_deadline(self.now)
            if due is not None and due <= self.coming[0][0]:
                self.now = max(self.now, due)
                self.carry(self.books.tick(self.now))
            else:
                self.now, _, what = heapq.heappop(self.coming)
                what()

    @property
    def moved(self) -> int:
        """How many slots went from one process to another."""
        return self.books.pools["p"].counters["moved"]


class SimulatedProcess:
    """A worker process: its shelf, its waiting threads, and what it was told."""

    def __init__(self, world: Simulation, process: ProcessId, threads: int) -> None:
        self.world = world
        self.process = process
        self.threads = threads
        self.inbox: deque[Any] = deque()
        self.shelf: deque[tuple[Any, float]] = deque()
        self.side: set[Any] = set()
        self.queue: dict[Ticket, float] = {}
        self.contended = False
        self.tickets = itertools.count(1)

    def want(self) -> None:
        """A thread wants a resource."""
        if self.shelf:
            self.work(self.shelf.pop()[0], self.world.now)
            return
        ticket = Ticket(next(self.tickets))
        self.queue[ticket] = self.world.now
        self.world.say(self, Checkout("p", "key", ticket, None))

    def hear(self) -> None:
        """One decision arrives."""
        decision = self.inbox.popleft()
        if isinstance(decision, Grant):
            self.granted(decision)
        elif isinstance(decision, Keep):
            self.side.discard(decision.number)
            self.shelve(decision.number)
        elif isinstance(decision, Close):
            self.side.discard(decision.number)
            self.world.later(SERVER_S, lambda: self.closed(decision.number))
        elif isinstance(decision, Reclaim):
            self.contended = decision.contended
            left = decision.sweep
            while (
                left > 0 and self.shelf and self.world.now - self.shelf[0][1] >= decision.idle_for
            ):
                self.bring_back(self.shelf.popleft()[0])
                left -= 1
        else:
            assert not isinstance(decision, Refuse), decision

    def granted(self, grant: Grant) -> None:
        """A slot is ours."""
        self.side.discard(grant.number)
        since = self.queue.pop(grant.ticket, None)
        if not grant.fresh:
            if since is None:
                self.shelve(grant.number)
            else:
                self.work(grant.number, since)
            return
        world = self.world
        world.opened += 1
        world.held += 1
        world.peak = max(world.peak, world.held)
        world.later(OPEN_S, lambda: self.open(grant.number, since))

    def open(self, number: Any, since: float | None) -> None:
        """The resource is open; where its waiter was served meanwhile, it goes to the shelf."""
        self.world.say(self, Opened(number, OPEN_S))
        if since is None:
            self.shelve(number)
        else:
            self.work(number, since)

    def closed(self, number: Any) -> None:
        """The resource is gone."""
        self.world.held -= 1
        self.world.say(self, Closed(number, "moved"))

    def work(self, number: Any, since: float) -> None:
        """A thread has what it wanted."""
        world = self.world
        world.waits.append(world.now - since)
        world.served[self.process] += 1
        world.later(JOB_S, lambda: self.release(number))

    def release(self, number: Any) -> None:
        """A thread gives back."""
        self.shelve(number)
        self.world.later(THINK_S, self.want)

    def shelve(self, number: Any) -> None:
        """To the books if others wait, to our own oldest waiter, or to the shelf."""
        if self.contended:
            self.bring_back(number)
        elif self.queue:
            ticket, since = next(iter(self.queue.items()))
            del self.queue[ticket]
            self.world.say(self, Abandoned(ticket))
            self.work(number, since)
        else:
            self.shelf.append((number, self.world.now))

    def bring_back(self, number: Any) -> None:
        """Ask the books what becomes of it."""
        self.side.add(number)
        self.world.say(self, Returned(number))


def simulation(quick: bool) -> list[Table]:
    """More threads than slots, in more processes than slots: 1,000 processes on 500 slots."""
    cases = [(10, 4, 20, 1.0)] if quick else [(100, 4, 200, 5.0), (1000, 2, 500, 2.0)]
    return [_simulated(*case) for case in cases]


def _simulated(processes: int, threads: int, slots: int, seconds: float) -> Table:
    world = Simulation(processes, threads, slots, seed=1)
    began = time.perf_counter()
    world.run(seconds)
    took = time.perf_counter() - began
    waits = sorted(world.waits)
    served = [world.served[member.process] for member in world.members]
    mean = sum(served) / len(served)
    name = f"{processes} processes, {slots} slots"
    return Table(
        f"simulation_{processes}",
        f"Simulated: {processes} processes x {threads} threads on {slots} slots, {seconds:g} s",
        "ms of waiting",
        {f"{name}: a checkout waited": [wait * 1000 for wait in waits] if len(waits) < 1000 else _sample(waits)},
        details={
            f"{name}: a checkout waited": {
                "checkouts": len(waits),
                "p99 ms": waits[math.floor(len(waits) * 0.99)] * 1000,
                "moved": world.moved,
                "moved %": 100 * world.moved / len(waits),
                "peak": world.peak,
                "least served": min(served) / mean,
                "most served": max(served) / mean,
                "real s": took,
            }
        },
        notes=[f"a job takes {JOB_S * 1000:g} ms, opening {OPEN_S * 1000:g} ms, thinking {THINK_S * 1000:g} ms",
               "least and most served: checkouts of a process, as parts of the mean"],
    )  # fmt: skip


def _sample(waits: list[float]) -> list[float]:
    """Every so many-th, the extremes included, in ms."""
    step = len(waits) / 999
    return [waits[min(len(waits) - 1, int(place * step))] * 1000 for place in range(1000)]


if __name__ == "__main__":
    command({"scale": run})
