"""16 processes start at once, and each wants a connection: how many log in at once, and for how long it takes.

A login takes 20 ms; every process does one job of 10 ms on its connection and leaves.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.command import command
from benchmarks.load import Witness, fork, in_processes, private_manager
from benchmarks.measuring import interleaved
from benchmarks.tables import Table

OPEN_S, JOB_S, CAP = 0.02, 0.01, 4
OURS, COLD = "mppool", "mppool, server to be started"
ALONE, BOUNDED = "a pool in every process", "BoundedSemaphore"


def run(quick: bool) -> list[Table]:
    """Time until everybody was served, and what the database saw."""
    processes, rounds = (4, 1) if quick else (16, 7)
    done: dict[str, list[Witness]] = {}

    def contestant(which: str) -> float:
        witness = Witness(OPEN_S)
        done.setdefault(which, []).append(witness)
        return CONTESTANTS[which](witness, processes) * 1000

    samples = interleaved({which: lambda w=which: contestant(w) for which in CONTESTANTS}, rounds)
    details = {
        which: {
            "logins": statistics.median(witness.opens for witness in witnesses),
            "open at once": max(witness.peak for witness in witnesses),
        }
        for which, witnesses in done.items()
    }
    floor = processes / CAP * (OPEN_S + JOB_S) * 1000
    return [
        Table(
            "storm",
            f"{processes} processes start and want a connection, {CAP} may be open at once",
            "ms until all were served",
            samples,
            (BOUNDED,),
            details=details,
            notes=[
                f"a login takes {OPEN_S * 1000:g} ms, a job {JOB_S * 1000:g} ms",
                f"with {CAP} at once no pool can be faster than {floor:g} ms",
                f"{ALONE}: has no cap over all processes",
            ],
        )
    ]


def _crowd(processes: int, job: Callable[[], None]) -> float:
    """How long it takes until the last of them has done its job, from when all are there."""
    barrier = fork.Barrier(processes)

    def work(_: int) -> tuple[float, float]:
        barrier.wait()
        began = time.monotonic()
        job()
        return began, time.monotonic()

    answers = in_processes(processes, work)
    return max(ended for _, ended in answers) - min(began for began, _ in answers)


def _mppool(witness: Witness, processes: int, *, started: bool = True) -> float:
    with private_manager() as manager:
        pool: Any = manager.pool("storm", witness.open, close=witness.close, max_size=CAP)
        if started:
            manager.start()

        def job() -> None:
            # A process that leaves would keep its connection until its death is noticed; here it says goodbye.
            lease = pool.checkout()
            time.sleep(JOB_S)
            lease.discard()

        return _crowd(processes, job)


def _plain(witness: Witness, processes: int, bound: Any) -> float:
    def job() -> None:
        with bound:
            connection = witness.open()
            time.sleep(JOB_S)
            witness.close(connection)

    return _crowd(processes, job)


CONTESTANTS: dict[str, Callable[[Witness, int], float]] = {
    ALONE: lambda witness, processes: _plain(witness, processes, contextlib.nullcontext()),
    BOUNDED: lambda witness, processes: _plain(witness, processes, fork.BoundedSemaphore(CAP)),
    OURS: _mppool,
    COLD: lambda witness, processes: _mppool(witness, processes, started=False),
}

if __name__ == "__main__":
    command({"storm": run})
