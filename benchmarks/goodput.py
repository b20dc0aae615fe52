"""Three times the load that can be served, and requests that give up after about the time for which they wait.

Requests come whether or not earlier ones have been answered (an open loop): 1,200 a second for 4 processes with
8 connections and jobs of 20 ms, which is 400 a second. Each has a timeout of 50 to 200 ms. Useful work is what was
done for a request whose time had not passed. All connections are opened, and half a second of the load has passed,
before the time that is measured.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.command import command
from benchmarks.contestants import (
    CONTESTANTS,
    ONE_EACH,
    PSYCOPG,
    SHARED,
    Lender,
    Setting,
    installed,
)
from benchmarks.load import Witness, fork, in_processes, in_threads
from benchmarks.measuring import interleaved
from benchmarks.peers import SQLALCHEMY
from benchmarks.tables import Table

PROCESSES, CONNECTIONS, JOB_S, LOGIN_S = 4, 8, 0.02, 0.1
PER_SECOND = 1200
TIMEOUTS_S = (0.05, 0.2)
THREADS = 96
"""Of each process: more than requests can be on their way at a time."""

BEFORE_S = 0.5


@dataclass(frozen=True)
class Request:
    """at: seconds after the beginning."""

    at: float
    timeout: float


def run(quick: bool) -> list[Table]:
    """One table."""
    seconds, rounds = (0.5, 1) if quick else (5.0, 5)
    done: dict[str, list[dict[str, float]]] = {}

    def contestant(which: str) -> float:
        result = _closed(which, seconds) if which == ONE_EACH else _open_loop(which, seconds)
        done.setdefault(which, []).append(result)
        return result.pop("useful")

    found, missing = installed(ONE_EACH, SQLALCHEMY, PSYCOPG, SHARED)
    samples = interleaved({w: lambda w=w: contestant(w) for w in found}, rounds, warm_up=False)
    details: dict[str, dict[str, Any]] = {
        which: {
            column: statistics.median(result[column] for result in results) for column in results[0]
        }
        for which, results in done.items()
    }
    return [
        Table(
            "goodput",
            f"{PER_SECOND:,} requests/s for {CONNECTIONS} connections that can serve "
            f"{CONNECTIONS / JOB_S:g}, timeouts of 50 to 200 ms",
            "useful jobs/s",
            samples,
            (ONE_EACH, SQLALCHEMY),
            more_is_better=True,
            details=details,
            notes=[
                f"{PROCESSES} processes; jobs of {JOB_S * 1000:g} ms, login {LOGIN_S * 1000:g} ms",
                f"{ONE_EACH}: always busy, what could be done",
                f"{SQLALCHEMY} and {PSYCOPG}: a static split, two connections for each process",
                "late ms: by how much a refusal came after the timeout, at most; behind ms: of the load itself",
                *missing,
            ],
            aims=[f"{SHARED}: at least 0.95 x {ONE_EACH}"],
        )
    ]


def _closed(which: str, seconds: float) -> dict[str, float]:
    """As many threads as connections, always busy."""
    with CONTESTANTS[which](Setting(Witness(LOGIN_S), CONNECTIONS, {})) as join:

        def work(_: int) -> list[int]:
            lender = join(CONNECTIONS // PROCESSES)
            _fill(lender)
            return in_threads(CONNECTIONS // PROCESSES, lambda _: _busy(lender, seconds))

        done = sum(map(sum, in_processes(PROCESSES, work)))
    return {
        "useful": done / seconds,
        "refused/s": 0.0,
        "open %": 0.0,
        "late ms": 0.0,
        "behind ms": 0.0,
    }


def _busy(lender: Lender, seconds: float) -> int:
    done, ends_at = 0, time.monotonic() + seconds
    while time.monotonic() < ends_at:
        taken = lender.take(None)
        time.sleep(JOB_S)
        lender.give_back(taken)
        done += 1
    return done


def _fill(lender: Lender) -> None:
    for one in in_threads(CONNECTIONS // PROCESSES, lambda _: lender.take(None)):
        lender.give_back(one)


def _open_loop(which: str, seconds: float) -> dict[str, float]:
    witness = Witness(LOGIN_S)
    barrier = fork.Barrier(PROCESSES)
    with CONTESTANTS[which](Setting(witness, CONNECTIONS, {})) as join:

        def work(process: int) -> tuple[list[_Answer], int]:
            lender = join(CONNECTIONS // PROCESSES)
            _fill(lender)
            requests = list(_requests(process, BEFORE_S + seconds))
            upcoming = iter(requests)  # taking the next is one step, so threads may share it
            barrier.wait()
            opens = witness.opens
            began = time.monotonic()
            answers = in_threads(THREADS, lambda _: list(_serve(upcoming, lender, began)))
            return [one for thread in answers for one in thread], witness.opens - opens

        told = in_processes(PROCESSES, work)
    answers = [one for answers, _ in told for one in answers if one.request.at >= BEFORE_S]
    served = sum(one.served for one in answers)
    return {
        "useful": max(served, 1e-3) / seconds,
        "refused/s": (len(answers) - served) / seconds,
        "open %": 100 * max(opens for _, opens in told) / max(1, served),
        "late ms": max(
            (one.waited - one.request.timeout for one in answers if not one.served), default=0.0
        )
        * 1000,
        "behind ms": statistics.quantiles([one.behind for one in answers], n=100)[98] * 1000,
    }


def _requests(process: int, seconds: float) -> Iterator[Request]:
    """They come at random instants, the same ones for all contestants."""
    dice = random.Random(process)
    instants = itertools.accumulate(
        dice.expovariate(PER_SECOND / PROCESSES) for _ in itertools.count()
    )
    for at in itertools.takewhile(lambda at: at < seconds, instants):
        yield Request(at, dice.uniform(*TIMEOUTS_S))


@dataclass(frozen=True)
class _Answer:
    """behind: by how much the request came too late, for there was no thread."""

    request: Request
    served: bool
    waited: float
    behind: float


def _serve(upcoming: Iterator[Request], lender: Lender, began: float) -> Iterator[_Answer]:
    for request in upcoming:
        due = began + request.at
        time.sleep(max(0.0, due - time.monotonic()))
        asked = time.monotonic()
        taken = lender.take(request.timeout)
        waited = time.monotonic() - asked
        if taken is not None:
            time.sleep(JOB_S)
            lender.give_back(taken)
        in_time = taken is not None and waited <= request.timeout
        yield _Answer(request, in_time, waited, max(0.0, asked - due))


if __name__ == "__main__":
    command({"goodput": run})
