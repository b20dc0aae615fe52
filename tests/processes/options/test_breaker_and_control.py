"""fail_fast and the shared back-off; wait_ready, resize, drain, reset, close from any process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from mppool import (
    CheckoutTimeout,
    ConfigurationError,
    OpenFailed,
    Pool,
    PoolClosed,
    PoolManager,
)
from mppool.core.breaker import FIRST_BACK_OFF_S, LONGEST_BACK_OFF_S
from mppool.recipe import Opening, Recipe
from tests.helpers import wait_until
from tests.processes.options.scene import CheckedThings, Colleague, Scene

Declare = Callable[..., Pool[Any]]
Hire = Callable[..., Any]


def most_tries(seconds: float) -> int:
    """How often a database may be tried in so many seconds: the back-off doubles, half of it is jitter."""
    tries, pause = 1, FIRST_BACK_OFF_S
    while seconds > 0:
        seconds -= pause / 2
        pause = min(2 * pause, LONGEST_BACK_OFF_S)
        tries += 1
    return tries


# --- the breaker ----------------------------------------------------------------------------------------


def test_all_processes_back_off_together_and_recover_at_once(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(max_size=6)
    colleagues = hire(pool, 3)
    scene.switch("down")
    began = time.monotonic()
    errors: list[OpenFailed] = []
    while time.monotonic() < began + 1.5 or len(errors) <= 20:
        for colleague in colleagues:
            colleague.tell("checkout", timeout=10)
        for colleague in colleagues:
            with pytest.raises(OpenFailed, match="the database is down") as refused:
                colleague.answer()
            errors.append(refused.value)
    tried, counted = scene.count("refused"), pool.stats()["counters"]["open_failed"]
    # The three may have begun together, before the first of them failed.
    assert tried <= most_tries(time.monotonic() - began) + 2
    assert counted == tried
    assert pool.stats()["breaker"] == "open"
    scene.switch("down", on=False)
    wait_until(lambda: _succeeds(colleagues[0]), "one to succeed")
    # One success ends it for everybody.
    for colleague in colleagues[1:]:
        colleague.do("checkout", timeout=10)
    assert pool.stats()["breaker"] == "closed"


def _succeeds(colleague: Colleague) -> bool:
    try:
        colleague.do("checkout", timeout=10)
    except OpenFailed:
        return False
    return True


def test_without_fail_fast_all_wait_within_their_timeouts(
    declare: Declare, hire: Hire, manager: PoolManager, scene: Scene
) -> None:
    pool = declare(max_size=6, fail_fast=False)
    colleagues = hire(pool, 3)
    manager.start()
    scene.switch("down")
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0.5)
    for colleague in colleagues:
        colleague.tell("checkout", timeout=60)
    wait_until(lambda: pool.stats()["waiting"] == 3, "all to wait")
    scene.switch("down", on=False)
    assert sorted(colleague.answer() for colleague in colleagues) == [0, 1, 2]


def test_without_fail_fast_a_timeout_names_the_last_error(
    declare: Declare, manager: PoolManager, scene: Scene
) -> None:
    pool = declare(fail_fast=False)
    manager.start()
    scene.switch("down")
    with pytest.raises(CheckoutTimeout) as refused:
        pool.checkout(timeout=0.3)
    assert "the database is down" in f"{refused.value} {refused.value.__cause__}"


class SlowToFail(Recipe[object]):
    """Fails to open, and only after the timeout of the checkout that it is opened for."""

    open_in_caller = True

    def open(self, opening: Opening) -> object:
        assert opening.timeout is not None
        ends = time.monotonic() + opening.timeout
        wait_until(lambda: time.monotonic() > ends, "the end of the timeout")
        raise ConnectionRefusedError("the database is down")


def test_without_fail_fast_an_opening_that_fails_after_the_timeout_is_a_timeout(
    manager: PoolManager,
) -> None:
    pool = manager.pool("things", SlowToFail(), max_size=1, fail_fast=False)
    manager.start()
    with pytest.raises(CheckoutTimeout) as refused:
        pool.checkout(timeout=0.2)
    assert isinstance(refused.value.__cause__, OpenFailed)


def test_one_identity_that_is_refused_blocks_no_other(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare()
    one, two = hire(pool, 2)
    scene.switch("down-alice")
    with pytest.raises(OpenFailed):
        one.do("checkout", identity="alice")
    with pytest.raises(OpenFailed):
        two.do("checkout", identity="alice")
    assert pool.stats()["breaker"] == "open"
    assert two.do("checkout", identity="bob") == 0


def test_with_something_working_one_failure_is_not_enough(declare: Declare, scene: Scene) -> None:
    pool = declare()
    with pool.checkout():
        scene.switch("down")
        for _ in range(2):
            with pytest.raises(OpenFailed):
                pool.checkout()
            assert pool.stats()["breaker"] == "closed"
        with pytest.raises(OpenFailed):
            pool.checkout()
        assert pool.stats()["breaker"] == "open"


def test_the_pool_starts_although_the_database_is_down_and_heals_by_itself(
    declare: Declare, scene: Scene
) -> None:
    scene.switch("down")
    pool = declare(min_size=2)
    with pytest.raises(CheckoutTimeout):
        pool.wait_ready(2.0)
    wait_until(lambda: scene.count("refused") > 2, "it to be tried though nobody asks")
    with pytest.raises(CheckoutTimeout, match="the database is down"):
        pool.wait_ready(2.0)
    scene.switch("down", on=False)
    wait_until(lambda: pool.stats()["idle"] == 2, "min_size to be open, though nobody asks")


# --- control --------------------------------------------------------------------------------------------


def test_wait_ready_in_one_process_fills_all(declare: Declare, hire: Hire) -> None:
    pool = declare(min_size=4)
    one = hire(pool)
    one.do("call", "wait_ready", 20)
    assert pool.stats()["idle"] == 4


def test_a_resize_from_any_process_is_seen_by_all(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(max_size=1)
    one, two = hire(pool, 2)
    one.do("checkout", "a")
    two.tell("checkout", "b", timeout=20)
    wait_until(lambda: pool.stats()["waiting"] == 1, "it to wait")
    pool.resize(max_size=2)
    two.answer()
    two.do("call", "resize", max_size=1)
    one.do("release", "a")
    wait_until(lambda: pool.stats()["size"] == 1, "what is beyond the cap to be closed")
    assert pool.stats()["max_size"] == 1
    one.do("call", "resize", max_size=None, min_size=3)
    wait_until(lambda: pool.stats()["size"] == 3, "min_size to be filled")
    with pytest.raises(ConfigurationError, match="max_size=0"):
        pool.resize(max_size=0)
    with pytest.raises(ConfigurationError, match="min_size=3"):
        pool.resize(max_size=2, min_size=3)


def test_a_reset_from_any_process_is_seen_by_all(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(max_size=4)
    one, two = hire(pool, 2)
    one.do("checkout", "held")
    two.do("checkout")
    two.do("release")
    pool.checkout().release()
    pool.reset()
    with pool.checkout() as thing:  # here at once
        assert thing.number == 3
    wait_until(lambda: scene.count("close") == 2, "what was idle to be closed")
    assert one.do("closed", "held") is False
    one.do("release", "held")
    wait_until(lambda: scene.count("close") == 3, "what was in use to be closed on release")
    wait_until(lambda: pool.stats()["size"] == 1, "the new one to be left")


def test_a_drain_says_how_much_is_still_out(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=4)
    one, two = hire(pool, 2)
    one.do("checkout", "held")
    two.do("checkout")
    two.do("release")
    assert pool.drain(0.3) == 1
    assert pool.stats()["size"] == 1
    two.tell("call", "drain", 20)
    one.do("release", "held")
    assert two.answer() == 0
    with pool.checkout(timeout=20):
        pass


def test_a_close_from_any_process_is_seen_by_all(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(max_size=2)
    one, two = hire(pool, 2)
    one.do("checkout", "held")
    two.do("checkout")
    two.do("release")
    pool.close(everywhere=True)
    with pytest.raises(PoolClosed):
        pool.checkout()
    with pytest.raises(PoolClosed):
        pool.wait_ready(5)
    wait_until(lambda: scene.count("close") == 1, "what was idle to be closed")
    with pytest.raises(PoolClosed):
        two.do("checkout")
    assert one.do("use", "held") == 0
    one.do("release", "held")
    wait_until(lambda: scene.count("close") == 2, "what was in use to be closed on release")
    assert (pool.stats()["closed"], pool.stats()["size"]) == (True, 0)


def test_a_close_refuses_those_who_wait(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=1)
    one, two = hire(pool, 2)
    one.do("checkout")
    two.tell("checkout", timeout=60)
    wait_until(lambda: pool.stats()["waiting"] == 1, "it to wait")
    one.do("call", "close", everywhere=True)
    with pytest.raises(PoolClosed):
        two.answer()


def test_after_the_close_in_this_process_nothing_idle_is_handed_out(declare: Declare) -> None:
    pool = declare(CheckedThings)
    pool.checkout().release()
    pool.close()
    with pytest.raises(PoolClosed):
        pool.checkout(timeout=0)
