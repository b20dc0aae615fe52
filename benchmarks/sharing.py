"""Processes with several threads share connections whose opening costs 20, 100, 300 or 1,000 ms.

    uniform   every thread always has a job; beside a static split
    scarce    the same, with half as many connections as there are processes
    skewed    85 % of the jobs are in one process
    shifting  one process has nearly all the jobs, and after a while it is another one

A static split gives each process a pool of its own. The contestants do the same jobs, one after the other in
every round; who holds how many connections is counted by themselves, in shared memory, where they are opened
and closed. Every run warms up with the load that is measured then: the first connections are opened, and the
slots find their places. What that takes is in the columns "first" (until every process was served) and "opens
before"; all other columns are of the time after it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.command import command
from benchmarks.contestants import (
    CONTESTANTS,
    FRESH,
    KEPT,
    ONE_EACH,
    SHARED,
    SPLIT,
    Lender,
    Setting,
)
from benchmarks.load import Witness, fork, in_processes, in_threads
from benchmarks.measuring import interleaved
from benchmarks.tables import Table

LOGINS_S = (0.02, 0.1, 0.3, 1.0)
JOB_S, SHORT_JOB_S = 0.02, 0.004
QUIET_JOBS = 20
"""Where one process has nearly all the jobs, a thread of each other one pauses for so many jobs after a job."""

FULL_SPEED = 0.9
"""So much of what its threads can do makes a process run at full speed."""


class Counted:
    """A phase of a load: so many jobs for each process."""

    def __init__(self, jobs: list[int]) -> None:
        self._jobs = jobs

    def of(self, process: int) -> Callable[[int], Iterator[None]]:
        """Call this in the process; then, for each thread, what it returns: it has an item for each job."""
        left: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self._jobs[process]):
            left.put(None)

        def jobs(_: int) -> Iterator[None]:
            with contextlib.suppress(queue.Empty):
                while True:
                    yield left.get_nowait()

        return jobs

    def is_busy(self, process: int) -> bool:
        """Whether it has as many jobs as any other."""
        return self._jobs[process] == max(self._jobs)


class Timed:
    """A phase of a load that lasts for so long. busy: processes whose threads always have a job; None: all.

    In each of the others one thread does a job now and then.
    """

    def __init__(self, seconds: float, job_s: float, busy: int | None = None) -> None:
        self.seconds, self._job_s, self.busy = seconds, job_s, busy

    def of(self, process: int) -> Callable[[int], Iterator[None]]:
        """See Counted."""
        ends_at = time.monotonic() + self.seconds

        def jobs(thread: int) -> Iterator[None]:
            if not self.is_busy(process) and thread:
                return
            while time.monotonic() < ends_at:
                yield
                if not self.is_busy(process):
                    time.sleep(QUIET_JOBS * self._job_s)

        return jobs

    def is_busy(self, process: int) -> bool:
        """Whether its threads always have a job."""
        return self.busy in (None, process)


Phase = Counted | Timed


@dataclass(frozen=True)
class Load:
    """The first phase is the warm-up."""

    processes: int
    threads: int
    connections: int
    login_s: float
    job_s: float
    phases: list[Any]

    @property
    def size(self) -> str:
        return f"{self.processes} x {self.threads} threads on {self.connections} connections"


def run(quick: bool) -> Iterator[Table]:
    """One table per kind of load and login, each as soon as it is there."""
    part = 0.05 if quick else 1.0  # of the logins, and of the time
    rounds = 1 if quick else 3
    for login_s in LOGINS_S[::2] if quick else LOGINS_S:
        yield uniform(login_s * part, rounds, part)
    yield scarce(0.3 * part, rounds)
    yield skewed(120 if quick else 2400, 1 if quick else 5)
    yield shifting(240 if quick else 4800, 1 if quick else 5)
    yield shifting_slowly(0.3 * part, rounds)


# --- loads ----------------------------------------------------------------------------------------------------


def uniform(login_s: float, rounds: int, part: float) -> Table:
    """Every thread always has a job."""
    phases = [
        Timed(8 * login_s + part, JOB_S),
        Timed(max(5 * part, 20 * login_s), JOB_S),
    ]
    load = Load(4, 4, 8, login_s, JOB_S, phases)
    names = (SPLIT, SHARED, KEPT, FRESH) if login_s == LOGINS_S[0] else (SPLIT, SHARED)
    table = _compared(f"uniform_{_ms(login_s)}", "uniform load", load, names, rounds)
    table.aims = [f"{SHARED}: at least 0.95 x {SPLIT}, at most 1 % of checkouts open"]
    return table


def scarce(login_s: float, rounds: int) -> Table:
    """Half as many connections as processes: they have to rotate."""
    phases = [Timed(10 * login_s, JOB_S), Timed(80 * login_s, JOB_S)]
    load = Load(8, 2, 4, login_s, JOB_S, phases)
    names = (ONE_EACH, SHARED, FRESH)
    table = _compared(f"scarce_{_ms(login_s)}", "uniform load", load, names, rounds)
    table.references = (ONE_EACH,)
    table.notes.append(f"{ONE_EACH}: 4 threads in all, what 4 connections can do")
    table.aims = [
        f"{SHARED}: at least 0.8 x {ONE_EACH}; the longest wait at most {20 * login_s * 1000:,.0f} ms (20 logins)"
    ]
    return table


def skewed(jobs: int, rounds: int) -> Table:
    """85 % of the jobs are in one process."""
    phases = [Counted(_one_has_most(0, jobs // 8)), Counted(_one_has_most(0, jobs))]
    load = Load(4, 4, 8, LOGINS_S[0], SHORT_JOB_S, phases)
    table = _compared("skewed_20", "85 % of the jobs in one process", load, _OLD, rounds)
    table.aims = [f"{SHARED}: at least 1.8 x {SPLIT}"]
    return table


def shifting(jobs: int, rounds: int) -> Table:
    """The same, and after every quarter of the jobs another process has them."""
    phases = [Counted(_one_has_most(process, jobs // 4)) for process in range(4)]
    warm_up = Counted(_one_has_most(3, jobs // 16))
    load = Load(4, 4, 8, LOGINS_S[0], SHORT_JOB_S, [warm_up, *phases])
    table = _compared("shifting_20", "85 % of the jobs in one process, in turn", load, _OLD, rounds)
    table.aims = [f"{SHARED}: at least 1.7 x {SPLIT}"]
    return table


def shifting_slowly(login_s: float, rounds: int) -> Table:
    """One process has nearly all the jobs, for 20 logins; how soon it is served at full speed."""
    phases = [Timed((10 if process == 3 else 20) * login_s, JOB_S, process) for process in _TURNS]
    load = Load(4, 4, 8, login_s, JOB_S, phases)
    names = (SPLIT, SHARED, KEPT)
    table = _compared(
        f"shifting_{_ms(login_s)}", "one process is busy, in turn", load, names, rounds
    )
    table.notes.append(
        f"full speed: logins from the change of the load until the busy process does {FULL_SPEED:g} of what "
        "its threads can do; the median of the changes, and the slowest of all"
    )
    table.aims = [f"{SHARED}: full speed within 10 logins of the change"]
    return table


_TURNS = (3, 0, 1, 2)
_OLD = (SPLIT, SHARED, KEPT, FRESH)


def _one_has_most(which: int, jobs: int) -> list[int]:
    """85 % for one process, the rest for the others."""
    few = round(jobs * 0.15 / 3)
    return [jobs - few * 3 if index == which else few for index in range(4)]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:g}"


# --- measuring ------------------------------------------------------------------------------------------------


def _compared(name: str, kind: str, load: Load, names: tuple[str, ...], rounds: int) -> Table:
    done: dict[str, list[dict[str, Any]]] = {}

    def contestant(which: str) -> float:
        result = _measure(load, which)
        done.setdefault(which, []).append(result)
        return float(result.pop("jobs_per_s"))

    samples = interleaved(
        {which: lambda w=which: contestant(w) for which in names}, rounds, warm_up=False
    )
    details = {which: _summary(results) for which, results in done.items()}
    notes = [
        f"a job takes {_ms(load.job_s)} ms, opening a connection {_ms(load.login_s)} ms",
        "first s: until every process was served, opens before: in the warm-up; all else is of the time after it",
        f"peak: connections open at once; the cap is {load.connections}",
        "least served: jobs/s of the process with the fewest, of those with as many jobs, as a part of the mean",
    ]
    if KEPT in names:
        notes.append(f"{KEPT}: caps what is in use, not what is open")
    return Table(
        f"sharing_{name}",
        f"{load.size}, login {_ms(load.login_s)} ms, {kind}",
        "jobs/s",
        samples,
        (SPLIT,),
        more_is_better=True,
        details=details,
        notes=notes,
    )


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    worst = ("longest wait ms", "peak", "slowest full speed")
    return {
        column: (max if column in worst else statistics.median)(
            result[column] for result in results
        )
        for column in results[0]
    }


@dataclass(frozen=True)
class _Told:
    """What a process says of one phase: when it began, and each of its jobs as (asked, served, ended)."""

    began: float
    jobs: list[tuple[float, float, float]]


def _measure(load: Load, which: str) -> dict[str, Any]:
    """Do all jobs; how fast, and what it took."""
    witness = Witness(load.login_s)
    # As many threads as there are connections keep one each; everybody else has all processes and threads.
    alone = which == ONE_EACH
    processes, threads = (load.connections, 1) if alone else (load.processes, load.threads)
    barrier = fork.Barrier(processes)
    opens = fork.Array("l", len(load.phases) + 1)
    with CONTESTANTS[which](Setting(witness, load.connections, {})) as join:

        def work(process: int) -> list[_Told]:
            lender = join(max(1, load.connections // processes))
            told = []
            for number, phase in enumerate(load.phases):
                barrier.wait()
                told.append(_phase(phase.of(process), threads, lender, load.job_s))
                barrier.wait()
                opens[number + 1] = witness.opens
            return told

        answers = in_processes(processes, work)
    return _figures(load, answers, list(opens), witness)


def _phase(
    jobs: Callable[[int], Iterator[None]], threads: int, lender: Lender, job_s: float
) -> _Told:
    done: list[tuple[float, float, float]] = []

    def thread(number: int) -> None:
        for _ in jobs(number):
            asked = time.monotonic()
            taken = lender.take(None)
            served = time.monotonic()
            time.sleep(job_s)
            lender.give_back(taken)
            done.append((asked, served, time.monotonic()))

    began = time.monotonic()
    in_threads(threads, thread)
    return _Told(began, done)


def _figures(
    load: Load, answers: list[list[_Told]], opens: list[int], witness: Witness
) -> dict[str, Any]:
    steady = range(1, len(load.phases))
    told = [answer[phase] for answer in answers for phase in steady]
    jobs = list(itertools.chain.from_iterable(one.jobs for one in told))
    waits = sorted(served - asked for asked, served, _ in jobs)
    seconds = sum(
        max(job[2] for answer in answers for job in answer[phase].jobs)
        - min(answer[phase].began for answer in answers)
        for phase in steady
    )
    began = min(answer[0].began for answer in answers)
    opened = opens[-1] - opens[1]
    figures: dict[str, Any] = {
        "jobs_per_s": len(jobs) / seconds,
        "open %": 100 * opened / len(jobs),
        "wait p50 ms": waits[len(waits) // 2] * 1000,
        "wait p99 ms": waits[len(waits) * 99 // 100] * 1000,
        "longest wait ms": waits[-1] * 1000,
        "peak": witness.peak,
        "least served": min(_shares(load, answers)),
        "first s": max(
            min(job[1] for job in answer[0].jobs) - began for answer in answers if answer[0].jobs
        ),
        "opens before": opens[1],
    }
    if any(isinstance(phase, Timed) and phase.busy is not None for phase in load.phases):
        speeds = [_full_speed_after(load, answers, phase) / load.login_s for phase in steady]
        figures["full speed"] = statistics.median(speeds)
        figures["slowest full speed"] = max(speeds)
    return figures


def _shares(load: Load, answers: list[list[_Told]]) -> Iterator[float]:
    """Jobs per second of each process, as a part of the mean of those with as many jobs in this phase."""
    for number, phase in enumerate(load.phases[1:], 1):
        alike = [answer[number] for index, answer in enumerate(answers) if phase.is_busy(index)]
        rates = [
            len(told.jobs) / (max((job[2] for job in told.jobs), default=math.inf) - told.began)
            for told in alike
        ]
        yield min(rates) / statistics.fmean(rates)


def _full_speed_after(load: Load, answers: list[list[_Told]], number: int) -> float:
    """Seconds from the beginning of a phase until its busy process runs at full speed; infinity: it never did."""
    told = answers[load.phases[number].busy][number]
    ended = sorted(job[2] for job in told.jobs)
    window = max(load.login_s, 5 * load.job_s)
    enough = FULL_SPEED * load.threads * window / load.job_s
    for index, end in enumerate(ended):
        if index + 1 - bisect_left(ended, end - window) >= enough:
            return max(0.0, end - window - told.began)
    return math.inf


if __name__ == "__main__":
    command({"sharing": run})
