"""Threads of one process want more connections than there are, and hold each for a very short time.

All connections have been opened, and every thread has had one, before the time that is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.command import command
from benchmarks.contestants import (
    BARE,
    CONTESTANTS,
    IN_PROCESS,
    PSYCOPG,
    SHARED,
    Lender,
    Setting,
    installed,
)
from benchmarks.load import Witness, in_processes, in_threads
from benchmarks.measuring import interleaved
from benchmarks.peers import SQLALCHEMY
from benchmarks.tables import Table

CROWDS = ((4, 2), (16, 4))
HELD_S = (0.0, 0.0002, 0.002)
TURNS_LONGER = 4
"""Where nothing is held, what threads wait for is the interpreter, in turns of 5 ms: in one second each of sixteen has a dozen of
them, some a few. So long must be measured to see whether somebody is left behind."""
NAMES = (BARE, SQLALCHEMY, PSYCOPG, IN_PROCESS, SHARED)
LOGIN_S = 0.02


def run(quick: bool) -> Iterator[Table]:
    """A table for each crowd, and for how long a connection is held."""
    rounds, seconds = (1, 0.05) if quick else (7, 1.0)
    for threads, connections in CROWDS:
        for held_s in HELD_S:
            longer = 1 if held_s else TURNS_LONGER
            yield contention(threads, connections, held_s, rounds, seconds * longer)


def contention(threads: int, connections: int, held_s: float, rounds: int, seconds: float) -> Table:
    """Checkouts per second of all threads together."""
    done: dict[str, list[dict[str, float]]] = {}

    def contestant(which: str) -> float:
        result = _measure(which, threads, connections, held_s, seconds)
        done.setdefault(which, []).append(result)
        return result.pop("per_second")

    found, missing = installed(*NAMES)
    samples = interleaved({w: lambda w=w: contestant(w) for w in found}, rounds, warm_up=False)
    details: dict[str, dict[str, Any]] = {
        which: {
            "least served": statistics.median(result["least served"] for result in results),
            "wait p99 ms": statistics.median(result["wait p99 ms"] for result in results),
            "longest wait ms": max(result["longest wait ms"] for result in results),
        }
        for which, results in done.items()
    }
    return Table(
        f"contention_{threads}_on_{connections}_{held_s * 1e6:g}_us",
        f"{threads} threads of one process on {connections} connections, each held for {held_s * 1000:g} ms",
        "checkouts/s",
        samples,
        (SQLALCHEMY,),
        more_is_better=True,
        details=details,
        notes=[
            "least served: checkouts of the thread with the fewest, as a part of the mean",
            *missing,
        ],
        aims=[
            f"{SHARED}, over a server and in process: at least 1.0 x {SQLALCHEMY}; least served at least 0.7"
        ],
    )


def _measure(
    which: str, threads: int, connections: int, held_s: float, seconds: float
) -> dict[str, float]:
    witness = Witness(LOGIN_S)
    with CONTESTANTS[which](Setting(witness, connections, {})) as join:

        def work(_: int) -> tuple[list[list[float]], float]:
            lender = join(connections)
            for one in in_threads(connections, lambda _: lender.take(None)):
                lender.give_back(one)
            in_threads(threads, lambda _: _use(lender, held_s, seconds / 10))
            began = time.perf_counter()
            waits = in_threads(threads, lambda _: _use(lender, held_s, seconds))
            return waits, time.perf_counter() - began

        waits, took = in_processes(1, work)[0]
    counts = [len(one) for one in waits]
    sorted_waits = sorted(wait for one in waits for wait in one)
    return {
        "per_second": sum(counts) / took,
        "least served": min(counts) / statistics.fmean(counts),
        "wait p99 ms": sorted_waits[len(sorted_waits) * 99 // 100] * 1000,
        "longest wait ms": sorted_waits[-1] * 1000,
    }


def _use(lender: Lender, held_s: float, seconds: float) -> list[float]:
    """How long each checkout of this thread took."""
    take, give_back, now = lender.take, lender.give_back, time.perf_counter
    waits: list[float] = []
    ends_at = now() + seconds
    while (asked := now()) < ends_at:
        taken = take(None)
        waits.append(now() - asked)
        if held_s:
            time.sleep(held_s)
        give_back(taken)
    return waits


if __name__ == "__main__":
    command({"contention": run})
