"""One cap for everybody: two pools on a budget, lanes for web and batch jobs, and 200 tenants of whom one floods.

A budget of 20 connections bears two pools. Sixteen threads flood `reports` for one tenant, and sixteen the lane of
batch jobs in `orders`, while two threads of the web lane do a job now and then. Then 199 other tenants want one job
each at the same moment, in four processes with ten threads each. Each needs a login of its own: a connection that was
opened for somebody else is never handed out.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.command import command
from benchmarks.load import Witness, fork, in_processes, in_threads, private_manager
from benchmarks.measuring import interleaved
from benchmarks.tables import Table
from mppool import Pool

CAP, TENANTS, PROCESSES, THREADS = 20, 200, 4, 10
FLOOD_THREADS, WEB_THREADS = 16, 2
JOB_S, WEB_PAUSE_S, WARM_UP_S = 0.005, 0.01, 1.0
LOGINS_S = (0.005, 0.02)
BARE, ALONE, FLOODED = (
    "BoundedSemaphore, reopened",
    "mppool, tenants alone",
    "mppool, beside floods",
)


def run(quick: bool) -> list[Table]:
    """For each login, how long it takes until every tenant was served."""
    rounds = 1 if quick else 5
    return [_shares(login_s, rounds) for login_s in (LOGINS_S[:1] if quick else LOGINS_S)]


def _shares(login_s: float, rounds: int) -> Table:
    done: dict[str, list[dict[str, float]]] = {}

    def contestant(which: str) -> float:
        result = _CONTESTANTS[which](Witness(login_s))
        done.setdefault(which, []).append(result)
        return result.pop("all served ms")

    samples = interleaved(
        {w: lambda w=w: contestant(w) for w in _CONTESTANTS}, rounds, warm_up=False
    )
    details: dict[str, dict[str, Any]] = {
        which: {
            column: statistics.median(result[column] for result in results) for column in results[0]
        }
        for which, results in done.items()
    }
    ideal = (TENANTS - 1) / (CAP / 2) * (login_s + JOB_S) * 1000
    return Table(
        f"shares_{login_s * 1000:g}",
        f"{TENANTS - 1} tenants want one job each, login {login_s * 1000:g} ms",
        "ms until every tenant was served",
        samples,
        (BARE,),
        details=details,
        notes=[
            f"half of the budget is the tenants' pool: {ideal:,.0f} ms are the least that is possible",
            f"{BARE}: {CAP // 2} connections, no identities kept, no floods",
            "flood %, batch %, web %: of the tenants' pool, and of the other one, while the tenants were being served",
            "web ms: the longest wait in the web lane in that time",
        ],
        aims=[f"{FLOODED}: within a second"],
    )


@dataclass(frozen=True)
class _Use:
    """One use of a connection: when it was asked for, got and given back."""

    asked: float
    got: float
    ended: float


def _bare(witness: Witness) -> dict[str, float]:
    slots, barrier = fork.BoundedSemaphore(CAP // 2), fork.Barrier(PROCESSES)

    def use(_: int) -> None:
        with slots:
            connection = witness.open()
            time.sleep(JOB_S)
            witness.close(connection)

    spans = in_processes(PROCESSES, lambda index: _tenants(index, use, barrier))
    return {"all served ms": _longest(spans) * 1000, **dict.fromkeys(_COLUMNS, 0.0)}


def _alone(witness: Witness) -> dict[str, float]:
    barrier = fork.Barrier(PROCESSES)
    with private_manager() as manager:
        pool = manager.pool("reports", witness.open, close=witness.close, max_size=CAP // 2)
        manager.start()
        spans = in_processes(PROCESSES, lambda index: _tenants(index, _job_of(pool), barrier))
    return {"all served ms": _longest(spans) * 1000, **dict.fromkeys(_COLUMNS, 0.0)}


def _flooded(witness: Witness) -> dict[str, float]:
    barrier = fork.Barrier(PROCESSES + 3)
    with private_manager() as manager:
        budget = manager.budget("db", CAP)
        reports = manager.pool("reports", witness.open, close=witness.close, budget=budget)
        orders = manager.pool(
            "orders", witness.open, close=witness.close, max_size=CAP // 2, budget=budget,
            lanes={"web": WEB_THREADS, "batch": CAP // 2 - WEB_THREADS},
        )  # fmt: skip
        manager.start()
        beside = [
            lambda: _beside(reports, FLOOD_THREADS, 0.0, barrier, identity="tenant 0"),
            lambda: _beside(orders, FLOOD_THREADS, 0.0, barrier, lane="batch"),
            lambda: _beside(orders, WEB_THREADS, WEB_PAUSE_S, barrier, lane="web"),
        ]

        def work(index: int) -> Any:
            if index >= PROCESSES:
                return beside[index - PROCESSES]()
            return _tenants(index, _job_of(reports), barrier)

        *spans, flood, batch, web = in_processes(PROCESSES + len(beside), work)
    began, ended = min(began for began, _ in spans), max(ended for _, ended in spans)
    flood_part, batch_part, web_part = (
        100 * _in_use(uses, began, ended) / (CAP / 2) for uses in (flood, batch, web)
    )
    web_ms = max((u.got - u.asked for u in web if began <= u.asked < ended), default=0.0) * 1000
    return {
        "all served ms": (ended - began) * 1000,
        **dict(
            zip(_COLUMNS, (flood_part, batch_part, web_part, web_ms, witness.peak), strict=True)
        ),
    }


_COLUMNS = ("flood %", "batch %", "web %", "web ms", "most open")
_CONTESTANTS: dict[str, Callable[[Witness], dict[str, float]]] = {
    BARE: _bare,
    ALONE: _alone,
    FLOODED: _flooded,
}


def _job_of(pool: Pool[object]) -> Callable[[int], None]:
    def use(tenant: int) -> None:
        with pool.checkout(None, identity=f"tenant {tenant}"):
            time.sleep(JOB_S)

    return use


def _tenants(index: int, use: Callable[[int], None], barrier: Any) -> tuple[float, float]:
    """One job for each of this process's tenants, many at a time: when the first began and the last ended."""
    own = iter(range(1 + index, TENANTS, PROCESSES))  # taking the next is one step
    barrier.wait()
    began = time.monotonic()
    in_threads(THREADS, lambda _: [use(tenant) for tenant in own])
    ended = time.monotonic()
    barrier.wait()
    return began, ended


def _beside(
    pool: Pool[object], threads: int, pause_s: float, barrier: Any, **how: Any
) -> list[_Use]:
    """Work that goes on while the tenants are served, and began before."""
    uses: list[_Use] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            asked = time.monotonic()
            with pool.checkout(None, **how):
                got = time.monotonic()
                time.sleep(JOB_S)
            uses.append(_Use(asked, got, time.monotonic()))
            time.sleep(pause_s)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    time.sleep(WARM_UP_S)
    barrier.wait()
    barrier.wait()
    over.set()
    for worker in workers:
        worker.join()
    return uses


def _in_use(uses: Iterable[_Use], began: float, ended: float) -> float:
    """How many connections were in use, on average, between two instants."""
    used = sum(max(0.0, min(use.ended, ended) - max(use.got, began)) for use in uses)
    return used / (ended - began)


def _longest(spans: Sequence[tuple[float, float]]) -> float:
    return max(ended for _, ended in spans) - min(began for began, _ in spans)


if __name__ == "__main__":
    command({"shares": run})
