"""Many processes with many threads that want the same token at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

from tests.helpers import PATIENCE

SCOPE = "https://database.windows.net/.default"

_fork = get_context("fork")


def crowd(
    work: Callable[[], Any], *, processes: int, threads: int = 1, patience: float = PATIENCE
) -> list[Any]:
    """What `work` returned, or the exceptions that it raised as text, from all threads of all processes.

    All begin at the same time.
    """
    barrier = _fork.Barrier(processes * threads)
    results = _fork.SimpleQueue()

    def one() -> None:
        barrier.wait(patience)
        try:
            results.put(work())
        except Exception as error:
            results.put(f"{type(error).__name__}: {error}")

    def run() -> None:
        mine = [threading.Thread(target=one) for _ in range(threads)]
        for thread in mine:
            thread.start()
        for thread in mine:
            thread.join()
        os._exit(0)  # nothing of the test runner's ends here

    children = [_fork.Process(target=run) for _ in range(processes)]
    for child in children:
        child.start()
    deadline = time.monotonic() + patience
    try:
        got = []
        while len(got) < processes * threads and time.monotonic() < deadline:
            if results.empty():
                time.sleep(0.005)
            else:
                got.append(results.get())
        assert len(got) == processes * threads, f"only {len(got)} answered: {got}"
        return got
    finally:
        for child in children:
            child.join(1.0)
            if child.is_alive():
                child.kill()
            child.join()
            child.close()
        results.close()


def slowly(asked: Any, seconds: float = 0.2) -> Any:
    """A behaviour: a token, after a while, so that all who want it are there."""
    time.sleep(seconds)
    return asked.token()
