"""64 processes start at once, and each wants a connection; the database should see only four logins at a time.

A login takes 100 ms. The processes and the server have started; that is not measured.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.command import command
from benchmarks.contestants import CONTESTANTS, SHARED, Setting
from benchmarks.load import Witness, fork, in_processes
from benchmarks.measuring import interleaved
from benchmarks.tables import Table

PROCESSES, LOGIN_S, AT_A_TIME = 64, 0.1, 4
BOUNDED, BRAKED = "BoundedSemaphore around the login", "mppool, max_opening"
UNBRAKED = "mppool, without"


def run(quick: bool) -> list[Table]:
    """Time until all were served, and what the database saw."""
    processes, rounds = (12, 1) if quick else (PROCESSES, 7)
    done: dict[str, list[Witness]] = {}

    def contestant(which: str) -> float:
        witness = Witness(LOGIN_S)
        done.setdefault(which, []).append(witness)
        return _CONTESTANTS[which](witness, processes) * 1000

    samples = interleaved({w: lambda w=w: contestant(w) for w in _CONTESTANTS}, rounds)
    details = {
        which: {
            "logins": statistics.median(witness.opens for witness in witnesses),
            "logins at a time": max(witness.most_opening for witness in witnesses),
        }
        for which, witnesses in done.items()
    }
    ideal = processes / AT_A_TIME * LOGIN_S * 1000
    return [
        Table(
            "brake",
            f"{processes} processes want a connection at once, {AT_A_TIME} logins at a time",
            "ms until all were served",
            samples,
            (BOUNDED,),
            details=details,
            notes=[
                f"a login takes {LOGIN_S * 1000:g} ms, so {ideal:g} ms are the least that is possible with {AT_A_TIME} at a time",
                "logins at a time: the most in all rounds, as the witness counts them",
            ],
            aims=[
                f"{BRAKED}: never more than {AT_A_TIME} logins at a time, all served within {1.15 * ideal:,.0f} ms (1.15 x)"
            ],
        )
    ]


def _crowd(processes: int, take: Callable[[], Any]) -> float:
    """How long it takes until the last has its connection, from when all are there."""
    barrier = fork.Barrier(processes)

    def work(_: int) -> tuple[float, float]:
        barrier.wait()
        began = time.monotonic()
        take()
        served = time.monotonic()
        barrier.wait()  # everybody keeps what it has
        return began, served

    answers = in_processes(processes, work)
    return max(served for _, served in answers) - min(began for began, _ in answers)


def _plain(witness: Witness, processes: int) -> float:
    bound = fork.BoundedSemaphore(AT_A_TIME)

    def take() -> None:
        with bound:
            witness.open()

    return _crowd(processes, take)


def _mppool(witness: Witness, processes: int, **options: Any) -> float:
    with contextlib.ExitStack() as closing:
        setting = Setting(witness, processes, options)
        join = closing.enter_context(CONTESTANTS[SHARED](setting))
        kept = []  # what nobody refers to any more is closed
        return _crowd(processes, lambda: kept.append(join(1).take(None)))


_CONTESTANTS: dict[str, Callable[[Witness, int], float]] = {
    BOUNDED: _plain,
    BRAKED: lambda witness, processes: _mppool(witness, processes, max_opening=AT_A_TIME),
    UNBRAKED: _mppool,
}

if __name__ == "__main__":
    command({"brake": run})
