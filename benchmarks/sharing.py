"""4 processes x 4 threads share 8 connections whose opening costs 20 ms.

    uniform   every thread has as many jobs as any other
    skewed    85 % of the jobs are in one process
    shifting  the same, and after every quarter another process has them

A static split gives each process a pool of two of its own. The contestants do the same jobs, one after the
other in every round; who holds how many connections is counted by themselves, in shared memory, where
they are opened and closed.
"""

from __future__ import annotations

import contextlib
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.command import command
from benchmarks.load import Witness, fork, in_processes, private_manager
from benchmarks.measuring import interleaved
from benchmarks.tables import Table

PROCESSES, THREADS, CONNECTIONS = 4, 4, 8
OPEN_S, JOB_S = 0.02, 0.004
JOBS = {"uniform": 6000, "skewed": 2400, "shifting": 4800}
SHARED, SPLIT = "mppool", "static split"
KEPT, FRESH = "BoundedSemaphore, kept open", "BoundedSemaphore, opened anew"

Take = Callable[[], Any]
GiveBack = Callable[[Any], None]


def run(quick: bool) -> list[Table]:
    """One table per kind of load."""
    rounds = 1 if quick else 5
    return [
        scenario(name, plan, 160 if quick else JOBS[name], rounds)
        for name, plan in SCENARIOS.items()
    ]


def _uniform(jobs: int) -> list[list[int]]:
    return [[jobs // PROCESSES] * PROCESSES]


def _skewed(jobs: int) -> list[list[int]]:
    return [_one_has_most(0, jobs)]


def _shifting(jobs: int) -> list[list[int]]:
    return [_one_has_most(phase, jobs // PROCESSES) for phase in range(PROCESSES)]


def _one_has_most(which: int, jobs: int) -> list[int]:
    """85 % for one process, the rest for the others."""
    few = round(jobs * 0.15 / (PROCESSES - 1))
    return [jobs - few * (PROCESSES - 1) if index == which else few for index in range(PROCESSES)]


SCENARIOS = {"uniform": _uniform, "skewed": _skewed, "shifting": _shifting}
AIMS = {
    "uniform": [
        f"{SHARED}: at least 0.95 x {SPLIT}, under 1 % of checkouts moved",
        f"{SHARED}: longest wait below 0.25 s; the least served process does half of the mean or more",
    ],
    "skewed": [f"{SHARED}: at least 1.8 x {SPLIT}"],
    "shifting": [f"{SHARED}: at least 1.7 x {SPLIT}"],
}


def scenario(name: str, plan: Callable[[int], list[list[int]]], jobs: int, rounds: int) -> Table:
    """All contestants with one kind of load."""
    done: dict[str, list[dict[str, Any]]] = {}

    def contestant(which: str) -> float:
        part = 4 if which == FRESH else 1  # as fast with fewer, and it is very slow
        result = _measure(plan(jobs // part), CONTESTANTS[which])
        done.setdefault(which, []).append(result)
        return float(result["jobs_per_s"])

    samples = interleaved({which: lambda w=which: contestant(w) for which in CONTESTANTS}, rounds)
    columns = (
        "wait p50 ms",
        "wait p99 ms",
        "longest wait ms",
        "opens",
        "moves",
        "peak",
        "least served",
    )
    details = {
        which: {
            column: statistics.median(result[column] for result in results) for column in columns
        }
        for which, results in done.items()
    }
    return Table(
        f"sharing_{name}",
        f"{PROCESSES} x {THREADS} threads on {CONNECTIONS} connections, {name} load",
        "jobs/s",
        samples,
        (SPLIT,),
        more_is_better=True,
        details=details,
        notes=[
            f"{jobs} jobs (a quarter where every one opens) of {JOB_S * 1000:g} ms; opening a connection takes {OPEN_S * 1000:g} ms",
            f"peak: connections open at once; the cap is {CONNECTIONS}",
            "least served: checkouts per second of the process with the fewest, as a part of the mean",
            f"{KEPT}: caps what is in use, not what is open",
        ],
        aims=AIMS[name],
    )


def _measure(phases: list[list[int]], contestant: Contestant) -> dict[str, Any]:
    """Do all jobs; how fast, and what it took."""
    witness = Witness(OPEN_S)
    barrier = fork.Barrier(PROCESSES)
    with contestant(witness) as make:

        def work(index: int) -> tuple[float, float, list[float], list[float]]:
            take, give_back = make()
            waits: list[float] = []
            spans: list[float] = []
            barrier.wait()
            began = time.monotonic()
            for jobs in phases:
                spans.append(_do_jobs(jobs[index], take, give_back, waits))
                barrier.wait()
            return began, time.monotonic(), waits, spans

        answers = in_processes(PROCESSES, work)
        moves = getattr(make, "moves", lambda: 0)()
    waits = sorted(wait for answer in answers for wait in answer[2])
    seconds = max(answer[1] for answer in answers) - min(answer[0] for answer in answers)
    rates = [
        jobs / span
        for phase, jobs_of in enumerate(phases)
        for jobs, span in zip(jobs_of, (answer[3][phase] for answer in answers), strict=True)
    ]
    return {
        "jobs_per_s": len(waits) / seconds,
        "wait p50 ms": waits[len(waits) // 2] * 1000,
        "wait p99 ms": waits[len(waits) * 99 // 100] * 1000,
        "longest wait ms": waits[-1] * 1000,
        "opens": witness.opens,
        "moves": moves,
        "peak": witness.peak,
        "least served": min(rates) / statistics.fmean(rates),
    }


def _do_jobs(number: int, take: Take, give_back: GiveBack, waits: list[float]) -> float:
    """So many jobs, by all threads of this process; how long it took."""
    left: queue.SimpleQueue[None] = queue.SimpleQueue()
    for _ in range(number):
        left.put(None)

    def thread() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                left.get_nowait()
                asked = time.monotonic()
                taken = take()
                waits.append(time.monotonic() - asked)
                time.sleep(JOB_S)
                give_back(taken)

    began = time.monotonic()
    threads = [threading.Thread(target=thread) for _ in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return time.monotonic() - began


# --- contestants: each is a context that gives what makes a process's `take` and `give_back` -------------------

Make = Callable[[], tuple[Take, GiveBack]]
Contestant = Callable[[Witness], "contextlib.AbstractContextManager[Make]"]


@contextlib.contextmanager
def _mppool(witness: Witness) -> Iterator[Make]:
    with private_manager() as manager:
        pool = manager.pool("shared", witness.open, close=witness.close, max_size=CONNECTIONS)

        def make() -> tuple[Take, GiveBack]:
            return pool.checkout, lambda lease: lease.release()

        def moves() -> int:
            return int(manager.stats()["pools"]["shared"]["counters"]["moved"])

        make.moves = moves  # type: ignore[attr-defined]
        manager.start()
        yield make


@contextlib.contextmanager
def _static_split(witness: Witness) -> Iterator[Make]:
    def make() -> tuple[Take, GiveBack]:
        slots = threading.BoundedSemaphore(CONNECTIONS // PROCESSES)
        return _semaphore_and_list(slots, witness)

    yield make


@contextlib.contextmanager
def _semaphore_kept(witness: Witness) -> Iterator[Make]:
    slots = fork.BoundedSemaphore(CONNECTIONS)
    yield lambda: _semaphore_and_list(slots, witness)


@contextlib.contextmanager
def _semaphore_fresh(witness: Witness) -> Iterator[Make]:
    slots = fork.BoundedSemaphore(CONNECTIONS)

    def take() -> Any:
        slots.acquire()
        return witness.open()

    def give_back(connection: Any) -> None:
        witness.close(connection)
        slots.release()

    yield lambda: (take, give_back)


def _semaphore_and_list(slots: Any, witness: Witness) -> tuple[Take, GiveBack]:
    """A pool as people write it: a semaphore for the bound, a list for what is idle."""
    idle: list[Any] = []

    def take() -> Any:
        slots.acquire()
        try:
            return idle.pop()
        except IndexError:
            return witness.open()

    def give_back(connection: Any) -> None:
        idle.append(connection)
        slots.release()

    return take, give_back


CONTESTANTS: dict[str, Contestant] = {
    SPLIT: _static_split,
    SHARED: _mppool,
    KEPT: _semaphore_kept,
    FRESH: _semaphore_fresh,
}

if __name__ == "__main__":
    command({"sharing": run})
