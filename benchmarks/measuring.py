"""Measuring so that a noisy machine hits everybody alike."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Contestant = Callable[[], float]


def interleaved(
    contestants: Mapping[str, Contestant], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """One measurement of each, then again from the first: ABCABC, `rounds` times.

    warm_up: there is one round before that does not count; not needed where a measurement warms up by itself.
    """
    for contestant in contestants.values() if warm_up else ():
        contestant()
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            gc.collect()
            samples[name].append(contestant())
    return samples


def nanoseconds(statement: str, namespace: dict[str, Any], repetitions: int) -> float:
    """The cost of a statement, run in a bare loop without a call around it."""
    return timeit.Timer(statement, globals=namespace).timeit(repetitions) / repetitions * 1e9


def per_second_in_threads(
    statement: str, namespace: dict[str, Any], repetitions: int, threads: int
) -> float:
    """How often a second a statement is run by so many threads together."""
    timers = [timeit.Timer(statement, globals=namespace) for _ in range(threads)]
    start = threading.Barrier(threads + 1)

    def work(timer: timeit.Timer) -> None:
        start.wait()
        timer.timeit(repetitions)

    workers = [threading.Thread(target=work, args=(timer,)) for timer in timers]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return threads * repetitions / (time.perf_counter() - began)


@contextlib.contextmanager
def pinned(cpus: int = 1) -> Iterator[set[int]]:
    """Everything that runs or starts meanwhile stays on so many CPUs.

    Wake-ups across cores make latencies bimodal (hazard 17), so only what stays on one is compared.
    """
    before = os.sched_getaffinity(0)
    chosen = set(sorted(before)[-cpus:])
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)
