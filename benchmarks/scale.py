"""The books alone, without a server: what an event costs when there is much, and who gets what in a crowd."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from benchmarks.command import command
from benchmarks.measuring import interleaved
from benchmarks.simulation import SHIFT, Load, Simulation
from benchmarks.tables import Table
from mppool.core.books import Books
from mppool.core.decisions import Grant
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
        desk.ask(process)  # in place of the one that was served
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

LOGINS_S = (0.001, 0.02, 0.1, 0.3, 1.0, 3.0)
JOBS_S = (0.001, 0.02, 0.3, 10.0)
CROWD = (2, 8, 64)
MOST_JOBS = 20_000
"""So many jobs of one case are simulated, and more where that would be less than `LEAST_STEPS` logins."""

LEAST_STEPS = 20
TOO_MANY_JOBS = 100_000
"""A case of which more jobs would have to be simulated is left out: long logins, short jobs, many processes."""


def simulation(quick: bool) -> list[Table]:
    """What is done, moved and waited for: logins from 1 ms to 3 s, jobs from 1 ms to 10 s, 2 to 64 processes."""
    if quick:
        return [_crowd(kind, (4,), (0.3,), (0.02,), 3_000) for kind in KINDS]
    return [_crowd(kind, CROWD, LOGINS_S, JOBS_S, MOST_JOBS) for kind in KINDS]


def _crowd(
    kind: str,
    processes: tuple[int, ...],
    logins: tuple[float, ...],
    jobs: tuple[float, ...],
    most_jobs: int,
) -> Table:
    """One kind of load, a row per case."""
    samples: dict[str, list[float]] = {}
    details: dict[str, dict[str, Any]] = {}
    for size, login_s, job_s in itertools.product(processes, logins, jobs):
        load = Load(kind, size, login_s, job_s)
        if LEAST_STEPS * load.step_s * load.slots / job_s > TOO_MANY_JOBS:
            continue
        row = f"{size} processes, login {login_s * 1000:g} ms, job {job_s * 1000:g} ms"
        world = simulated(kind, size, login_s, job_s, most_jobs)
        samples[row] = [max(world.done(), 1e-9)]
        details[row] = world.summary()
        if kind in ("skewed", "shifting", "bursty"):
            split = simulated(kind, size, login_s, job_s, most_jobs, split=True)
            details[row] = {"x static split": world.done() / split.done(), **details[row]}
    return Table(
        f"simulation_{kind}",
        f"Simulated: {kind} load",
        "work done, of what the slots could do",
        samples,
        more_is_better=True,
        details=details,
        notes=[
            *(line.strip() for line in _LOADS[kind].splitlines()),
            "open %: of the checkouts; longest wait: in logins, or in jobs where these are longer",
            "least served: checkouts of a process, as a part of the mean of those with as many jobs",
        ],
        aims=_AIMS.get(kind, []),
    )


def simulated(
    kind: str, size: int, login_s: float, job_s: float, most_jobs: int, *, split: bool = False
) -> Simulation:
    """One case, after a while in which the slots are opened."""
    load = Load(kind, size, login_s, job_s)
    step = max(login_s, job_s)
    share = load.slots // size if split else None
    world = Simulation(load, login_s=login_s, job_s=job_s, share=share)
    if kind == "shifting":
        world.run(4 * SHIFT * step, SHIFT * step)
    else:
        world.run(
            max(min(100 * step, most_jobs * job_s / load.slots), LEAST_STEPS * step), 8 * step + 1.0
        )
    return world


KINDS = ("uniform", "scarce", "skewed", "shifting", "bursty")
_LOADS = {
    "uniform": "4 threads in every process always have a job; there are 2 slots for each process",
    "scarce": "2 threads in every process always have a job; there is a slot for every other process",
    "skewed": "8 threads in a quarter of the processes always have a job; in the others one pauses for 20 jobs",
    "shifting": f"as skewed; every {SHIFT} logins (or jobs) it is another quarter",
    "bursty": "4 threads in every process have jobs for about 20 logins (or jobs), and then none for as long",
}
_AIMS = {
    "uniform": ["at least 0.95; at most 1 % of the checkouts open"],
    "scarce": ["at least 0.8; the longest wait at most 20 logins with 2 processes for each slot"],
}


if __name__ == "__main__":
    command({"scale": run})
