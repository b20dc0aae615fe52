"""Identities take turns in the slots of one process: one resource is closed, and the next opened in its slot (decision 0097)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mppool import InProcessManager, OpenFailed, PoolManager, Recipe
from tests.helpers import PATIENCE, wait_until


class Counted(Recipe[str]):
    """A resource is the identity for which it was opened. Counts what is open, from before the opening until after the close."""

    def __init__(self) -> None:
        self.closes = threading.Event()
        self.closes.set()
        self.lock = threading.Lock()
        self.open_now = self.peak = self.opened_so_far = self.closing = 0
        self.fails: set[str] = set()

    def fingerprint(self) -> str:
        return "counted"

    def open(self, opening: Any) -> str:
        if opening.identity in self.fails:
            raise ConnectionError("no route")
        with self.lock:
            self.opened_so_far += 1
            self.open_now += 1
            self.peak = max(self.peak, self.open_now)
        return str(opening.identity)

    def close(self, resource: str) -> None:
        self.closing += 1
        self.closes.wait(PATIENCE)
        with self.lock:
            self.open_now -= 1


@pytest.fixture(params=["server", "in process"])
def either(request: Any, manager: PoolManager) -> Any:
    return manager if request.param == "server" else InProcessManager()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def waits_for_a_contended(pool: Any) -> None:
    wait_until(lambda: pool._local.idle.contended, "somebody waits, and the process knows")


def test_many_identities_in_few_slots(either: Any, threads: Any) -> None:
    recipe = Counted()
    pool = either.pool("p", recipe, max_size=2, timeout=PATIENCE)

    def use(number: int) -> None:
        for turn in range(10):
            identity = f"tenant {number} {turn}"
            with pool.checkout(identity=identity) as resource:
                assert resource == identity

    list(threads.map(use, range(4)))
    assert recipe.peak <= 2, "two numbers of one slot were open at once"
    figures = pool.stats()
    counters = figures["counters"]
    assert counters["opened"] == recipe.opened_so_far
    assert counters["opened"] - counters["closed"] == figures["size"] <= 2


def test_nothing_is_opened_before_the_close_has_returned(either: Any, threads: Any) -> None:
    recipe = Counted()
    pool = either.pool("p", recipe, max_size=1, timeout=PATIENCE)
    first = pool.checkout(identity="alice")
    second = threads.submit(pool.checkout, identity="bob")
    waits_for_a_contended(pool)
    recipe.closes.clear()
    first.release()
    wait_until(lambda: recipe.closing == 1, "the close has begun")
    assert pool.stats()["size"] == 1
    assert recipe.opened_so_far == 1
    recipe.closes.set()
    with second.result(PATIENCE) as resource:
        assert resource == "bob"
    assert recipe.peak == 1
    figures = pool.stats()
    assert figures["counters"]["moved"] == figures["counters"]["closed"] == 1


def test_an_opening_that_fails_leaves_the_slot_to_others(either: Any, threads: Any) -> None:
    recipe = Counted()
    recipe.fails.add("bob")
    pool = either.pool("p", recipe, max_size=1, timeout=PATIENCE, fail_fast=True)
    first = pool.checkout(identity="alice")
    second = threads.submit(pool.checkout, identity="bob")
    waits_for_a_contended(pool)
    first.release()
    with pytest.raises(OpenFailed):
        second.result(PATIENCE)
    with pool.checkout(identity="carol") as resource:
        assert resource == "carol"
    assert recipe.peak == 1
