"""Tokens: what one costs that is there already, and how many requests are made for those that are not.

Beside: a dict look-up; azure-identity alone, with its own cache, in front of the same local endpoint.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from benchmarks.command import command
from benchmarks.load import private_manager
from benchmarks.measuring import interleaved, nanoseconds, per_second_in_threads, pinned
from benchmarks.tables import Table

SCOPE = "https://database.windows.net/.default"
LOOK_UP = "a dict look-up"
ALONE = "azure-identity alone: get_token"
SHARED = "mppool: get_token"
SHARED_INFO = "mppool: get_token_info"


def run(quick: bool) -> list[Table]:
    """One table per quantity."""
    with _endpoint() as asked:
        return [cached(quick), threads(quick), cold(quick, asked)]


@contextmanager
def _endpoint() -> Iterator[list[Any]]:
    """A managed identity endpoint; the list grows with each request."""
    from tests.azure.endpoints import Endpoint, serving

    with serving(Endpoint()) as endpoint:
        before = {name: os.environ.get(name) for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER")}
        os.environ["IDENTITY_ENDPOINT"] = f"{endpoint.url}/msi/token"
        os.environ["IDENTITY_HEADER"] = "header"

        def slowly(asked: Any) -> Any:
            time.sleep(0.1)
            return asked.token()

        endpoint.behaviour = slowly
        try:
            yield endpoint.asked
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def cached(quick: bool) -> Table:
    """A token that this process holds."""
    from azure.identity import ManagedIdentityCredential

    repetitions, rounds = (2_000, 3) if quick else (100_000, 15)
    with private_manager() as manager, pinned():
        shared = manager.credential(ManagedIdentityCredential())
        alone = ManagedIdentityCredential()
        shared.get_token(SCOPE)
        alone.get_token(SCOPE)
        names = {"s": shared, "a": alone, "d": {(SCOPE, None, False): 1}, "scope": SCOPE}

        def cost(statement: str, less: int = 1) -> Callable[[], float]:
            return lambda: nanoseconds(statement, names, repetitions // less) / 1000

        samples = interleaved(
            {
                LOOK_UP: cost("d[(scope, None, False)]"),
                SHARED: cost("s.get_token(scope)"),
                SHARED_INFO: cost("s.get_token_info(scope)"),
                ALONE: cost("a.get_token(scope)", 20),
            },
            rounds,
        )
    return Table(
        "token_cached",
        "A token that is there already",
        "us",
        samples,
        (LOOK_UP, ALONE),
        aims=[f"{SHARED}: at most 3 us beside {LOOK_UP}"],
    )


def threads(quick: bool) -> Table:
    """Four threads that use one credential: a lock between them would show."""
    from azure.identity import ManagedIdentityCredential

    repetitions, rounds = (2_000, 2) if quick else (50_000, 7)
    with private_manager() as manager:
        shared = manager.credential(ManagedIdentityCredential())
        shared.get_token(SCOPE)
        names = {"s": shared, "scope": SCOPE}

        def rate(count: int) -> Callable[[], float]:
            return lambda: per_second_in_threads(
                "s.get_token(scope)", names, repetitions // count, count
            )

        one = "1 thread"
        samples = interleaved({one: rate(1), "4 threads": rate(4)}, rounds)
    return Table(
        "token_threads",
        "Cached tokens by threads of one process",
        "tokens/s",
        samples,
        (one,),
        more_is_better=True,
        notes=["with the interpreter's own lock four threads are as fast as one at best"],
    )


def cold(quick: bool, asked: list[Any]) -> Table:
    """6 processes x 4 threads want the first token at once: requests at the endpoint."""
    from azure.identity import ManagedIdentityCredential

    rounds = 1 if quick else 5

    def mppool() -> float:
        with private_manager() as manager:
            return _requests(manager.credential(ManagedIdentityCredential()), asked)

    def alone() -> float:
        return _requests(ManagedIdentityCredential(), asked)

    samples = interleaved({SHARED: mppool, ALONE: alone}, rounds)
    return Table(
        "token_cold",
        "6 processes x 4 threads, cold: requests at the endpoint",
        "requests",
        samples,
        (ALONE,),
        aims=[f"{SHARED}: exactly 1"],
    )


def _requests(credential: Any, asked: list[Any]) -> float:
    fork = get_context("fork")
    start = fork.Barrier(24)
    before = len(asked)

    def one() -> None:
        start.wait(30)
        credential.get_token(SCOPE)

    def work() -> None:
        mine = [threading.Thread(target=one) for _ in range(4)]
        for thread in mine:
            thread.start()
        for thread in mine:
            thread.join()
        os._exit(0)

    processes = [fork.Process(target=work) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return float(len(asked) - before)


if __name__ == "__main__":
    command({"tokens": run})
