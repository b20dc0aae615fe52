"""50 threads want a connection at once, while few are idle and a login is slow.

    short jobs     5 are idle, a login takes 150 ms, a job 2 ms: all could be served from what comes back
    long jobs      the same with jobs of 2 s: nothing comes back in time, so as many as there are threads must be opened
    impatient      a login takes 300 ms, and nobody waits for longer than 100 ms

Everything that is idle was opened before, and the threads have started; neither is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.command import command
from benchmarks.contestants import (
    CONTESTANTS,
    IN_PROCESS,
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

THREADS, IDLE, LOGIN_S = 50, 5, 0.15
SHORT_JOB_S, LONG_JOB_S = 0.002, 2.0
IMPATIENT_LOGIN_S, TIMEOUT_S, IMPATIENT_JOB_S, IMPATIENT_THREADS = 0.3, 0.1, 0.02, 8
ALONE = (SQLALCHEMY, PSYCOPG, IN_PROCESS, SHARED)
TOGETHER = (SQLALCHEMY, PSYCOPG, SHARED)


def run(quick: bool) -> Iterator[Table]:
    """Short jobs, long jobs, impatience; in one process and in four."""
    long_s = LONG_JOB_S / 10 if quick else LONG_JOB_S
    for processes, names in ((1, ALONE), (4, TOGETHER)):
        yield spike("short", processes, SHORT_JOB_S, names, 1 if quick else 9)
        yield spike("long", processes, long_s, names, 1 if quick else 3)
    yield impatient(1.0 if quick else 3.0, 1 if quick else 5)


def spike(kind: str, processes: int, job_s: float, names: tuple[str, ...], rounds: int) -> Table:
    """How long the last of the threads waits, and how many connections there are in the end."""
    done: dict[str, list[dict[str, float]]] = {}

    def contestant(which: str) -> float:
        result = _spike(which, processes, job_s)
        done.setdefault(which, []).append(result)
        return result.pop("longest")

    found, missing = installed(*names)
    samples = interleaved({w: lambda w=w: contestant(w) for w in found}, rounds, warm_up=False)
    crowd = "one process" if processes == 1 else f"{processes} processes"
    ideal = THREADS / IDLE * job_s * 1000
    aims = {
        "short": f"{SHARED}, over a server and in process: at most 30 ms, at most 7 open at the end",
        "long": f"{SHARED}, over a server and in process: all served within two logins, {2 * LOGIN_S * 1000:g} ms",
    }
    return Table(
        f"spike_{kind}_{processes}",
        f"{THREADS} threads of {crowd} at once, {IDLE} idle connections, login {LOGIN_S * 1000:g} ms, "
        f"jobs of {job_s * 1000:g} ms",
        "ms, the longest wait",
        samples,
        (SQLALCHEMY,),
        details=_medians(done),
        notes=[
            f"with {IDLE} connections all are served after {ideal:g} ms",
            f"the cap is {THREADS}; {SQLALCHEMY} and {PSYCOPG} have a pool in every process",
            *missing,
        ],
        aims=[aims[kind]],
    )


def _medians(done: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    return {
        which: {
            column: statistics.median(result[column] for result in results) for column in results[0]
        }
        for which, results in done.items()
    }


def _spike(which: str, processes: int, job_s: float) -> dict[str, float]:
    witness = Witness(LOGIN_S)
    barrier = fork.Barrier(processes)
    with CONTESTANTS[which](Setting(witness, THREADS, {})) as join:

        def work(process: int) -> tuple[list[float], int]:
            lender = join(_part(THREADS, process, processes))
            _fill(lender, _part(IDLE, process, processes))
            barrier.wait()
            if processes > 1:
                time.sleep(0.1)  # the barrier has woken them one after the other
            waits = in_threads(
                _part(THREADS, process, processes), lambda _: _one_job(lender, job_s)
            )
            barrier.wait()
            _settle(witness)
            barrier.wait()
            return waits, witness.held

        answers = in_processes(processes, work)
    waits = sorted(wait for answer in answers for wait in answer[0])
    return {
        "longest": waits[-1] * 1000,
        "wait p50 ms": waits[len(waits) // 2] * 1000,
        "open at the end": answers[0][1],
        "opens": witness.opens - IDLE,
    }


def _part(number: int, index: int, parts: int) -> int:
    """A fair part of so many."""
    return number // parts + (index < number % parts)


def _fill(lender: Lender, number: int) -> None:
    taken = in_threads(number, lambda _: lender.take(None))
    for one in taken:
        lender.give_back(one)


def _one_job(lender: Lender, job_s: float) -> float:
    asked = time.monotonic()
    taken = lender.take(None)
    waited = time.monotonic() - asked
    time.sleep(job_s)
    lender.give_back(taken)
    return waited


def _settle(witness: Witness) -> None:
    """Until nothing is being opened any more: what is begun counts."""
    time.sleep(witness.open_s / 3)
    while witness.opening:
        time.sleep(witness.open_s / 3)


# --- impatience -----------------------------------------------------------------------------------------------


def impatient(seconds: float, rounds: int) -> Table:
    """Whether a pool fills whose logins take longer than its callers wait."""
    done: dict[str, list[dict[str, float]]] = {}

    def contestant(which: str) -> float:
        result = _impatient(which, seconds)
        done.setdefault(which, []).append(result)
        return result.pop("jobs_per_s")

    found, missing = installed(*ALONE)
    samples = interleaved({w: lambda w=w: contestant(w) for w in found}, rounds, warm_up=False)
    return Table(
        "spike_impatient",
        f"{IMPATIENT_THREADS} threads with timeouts of {TIMEOUT_S * 1000:g} ms, login {IMPATIENT_LOGIN_S * 1000:g} ms",
        "jobs/s",
        samples,
        (SQLALCHEMY,),
        more_is_better=True,
        details=_medians(done),
        notes=[
            f"for {seconds:g} s, beginning with an empty pool; jobs of {IMPATIENT_JOB_S * 1000:g} ms",
            f"the cap is {IMPATIENT_THREADS}",
            "longest: what a caller waited at most, served or not",
            *missing,
        ],
        aims=[f"{SHARED}, over a server and in process: the pool fills"],
    )


def _impatient(which: str, seconds: float) -> dict[str, float]:
    witness = Witness(IMPATIENT_LOGIN_S)
    with CONTESTANTS[which](Setting(witness, IMPATIENT_THREADS, {})) as join:

        def work(_: int) -> tuple[list[tuple[bool, float]], int]:
            lender = join(IMPATIENT_THREADS)
            ends_at = time.monotonic() + seconds
            did = in_threads(IMPATIENT_THREADS, lambda _: _jobs_until(ends_at, lender))
            return [one for thread in did for one in thread], witness.held

        did, held = in_processes(1, work)[0]
    served = sum(was_served for was_served, _ in did)
    return {
        "jobs_per_s": max(served, 1e-3) / seconds,
        "refused": len(did) - served,
        "longest ms": max(waited for _, waited in did) * 1000,
        "open at the end": held,
        "opens": witness.opens,
    }


def _jobs_until(ends_at: float, lender: Lender) -> list[tuple[bool, float]]:
    did = []
    while (asked := time.monotonic()) < ends_at:
        taken = lender.take(TIMEOUT_S)
        did.append((taken is not None, time.monotonic() - asked))
        if taken is not None:
            time.sleep(IMPATIENT_JOB_S)
            lender.give_back(taken)
    return did


if __name__ == "__main__":
    command({"spike": run})
