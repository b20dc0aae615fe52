"""keep=False, prefill=False, and what a process says, closes and invalidates of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from mppool import CheckoutTimeout, LeaseReleased, Pool
from tests.helpers import wait_until
from tests.processes.options.scene import HookedThings, Scene

Declare = Callable[..., Pool[Any]]
Hire = Callable[..., Any]


def test_nothing_stays_idle_where_nothing_is_kept(declare: Declare, scene: Scene) -> None:
    pool = declare(keep=False, max_size=2)
    for _ in range(3):
        with pool.checkout():
            pass
        assert pool.idle_here == 0
    assert (scene.count("open"), scene.count("close")) == (3, 3)
    assert pool.stats()["size"] == 0


def test_the_bound_holds_where_nothing_is_kept(declare: Declare, hire: Hire) -> None:
    pool = declare(keep=False, max_size=2)
    one, two = hire(pool, 2)
    one.do("checkout", "a")
    two.do("checkout", "b")
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0.05)
    one.do("release", "a")
    with pool.checkout(timeout=10):
        assert pool.stats()["size"] == 2


def test_what_is_not_kept_still_goes_to_a_thread_that_waits(declare: Declare, scene: Scene) -> None:
    pool = declare(HookedThings, keep=False, max_size=1)
    lease, got = pool.checkout(), threading.Event()

    def wait() -> None:
        with pool.checkout():
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: pool.stats()["waiting"] == 1, "the thread to wait")
    lease.release()
    thread.join()
    assert got.is_set()
    wait_until(lambda: pool.stats()["size"] == 0, "it to be closed")
    assert (scene.count("open"), scene.count("close")) == (1, 1)


def test_nothing_is_opened_in_advance_without_prefill(declare: Declare, scene: Scene) -> None:
    pool = declare(min_size=2, max_size=3, prefill=False, max_idle=0.05)
    leases = [pool.checkout() for _ in range(3)]
    for lease in leases:
        lease.release()
    wait_until(lambda: pool.stats()["size"] == 2, "the third to be closed")
    with pool.checkout():
        assert scene.count("open") == 3


def test_with_prefill_switched_off_wait_ready_fills_all_the_same(declare: Declare) -> None:
    pool = declare(min_size=2, prefill=False)
    with pool.checkout():
        assert pool.stats()["size"] == 1
    assert pool.wait_ready()
    assert pool.stats()["size"] == 2


def test_a_process_knows_what_it_has_without_asking(declare: Declare) -> None:
    pool = declare()
    lease = pool.checkout()
    with pool.checkout():
        assert (pool.idle_here, pool.in_use_here) == (0, 2)
    assert (pool.idle_here, pool.in_use_here) == (1, 1)
    lease.release()
    assert (pool.idle_here, pool.in_use_here) == (2, 0)


def test_close_idle_closes_what_lies_idle_here_and_the_pool_goes_on(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(max_size=3)
    colleague = hire(pool)
    colleague.do("checkout", "a")
    colleague.do("release", "a")
    lease = pool.checkout()
    with pool.checkout():
        pass
    assert pool.close_idle() == 1
    assert scene.count("close") == 1
    assert pool.stats()["size"] == 2
    lease.release()
    assert (pool.idle_here, pool.close_idle(), pool.close_idle()) == (1, 1, 0)


def test_an_invalidation_ends_everything_as_old_in_all_processes(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(max_size=4)
    colleague = hire(pool)
    colleague.do("checkout", "a")
    colleague.do("release", "a")
    first, second = pool.checkout(), pool.checkout()
    first.invalidate()
    wait_until(lambda: scene.count("close") == 1, "the colleague's to be closed")
    with pool.checkout() as newer:
        second.invalidate()  # the same failure, found once more: nothing new
        first.release()
        second.release()
        wait_until(lambda: scene.count("close") == 3, "the old ones to be closed")
    with pool.checkout() as again:
        assert again is newer
    with pytest.raises(LeaseReleased):
        first.invalidate()


def test_what_its_user_has_renewed_survives_the_invalidation(
    declare: Declare, scene: Scene
) -> None:
    pool = declare(max_size=2)
    first, second = pool.checkout(), pool.checkout()
    mine = first.resource
    second.release()
    first.invalidate(renewed=True)
    wait_until(lambda: scene.count("close") == 1, "the other one to be closed")
    first.release()
    with pool.checkout() as again:
        assert again is mine
