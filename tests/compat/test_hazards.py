"""Dropped objects, and forks."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable

import pytest

from mppool.compat.proxypatternpool import Pool, Proxy, TimeOut
from tests.compat.conftest import Thing
from tests.helpers import Fork, wait_until

MakePool = Callable[..., Pool]
MakeProxy = Callable[..., Proxy]


# --- dropped objects -------------------------------------------------------------------------------------


def test_the_place_of_a_dropped_object_is_free_again(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(min_size=0, max_size=1)
    for number in range(3):
        thing = pool.get(timeout=10)
        assert thing.number == number
        del thing
        gc.collect()
    assert "dropped instead of being returned" in caplog.text


def test_who_waits_gets_the_place_of_a_dropped_object(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    held = [pool.get()]
    got: list[int] = []
    waiter = threading.Thread(target=lambda: got.append(pool.get(timeout=10).number))
    waiter.start()
    wait_until(lambda: pool._core.stats()["waiting"], "a waiting get")
    held.clear()
    gc.collect()
    waiter.join()
    assert got == [1]


def test_a_round_of_housekeeping_makes_good_for_a_dropped_object(make_pool: MakePool) -> None:
    pool = make_pool(min_size=2, delay=0.01)
    del pool.get().number  # and the object with it
    wait_until(lambda: pool.stats()["ncreated"] == 3, "a new object")
    wait_until(lambda: pool.stats()["navail"] == 2, "both available")
    assert pool.stats()["nobjs"] == 2  # the dropped one is not counted any more


def test_a_returned_object_can_be_dropped_by_its_user(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)
    for _ in range(3):
        thing = pool.get(timeout=0)
        pool.ret(thing)
        del thing
        gc.collect()
    assert pool.stats()["ncreated"] == 1


class Weakless:
    """Like a sqlite3.Connection: no weak reference to it can be made."""

    __slots__ = ("closed", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("kind", [Thing, Weakless])
def test_the_object_of_a_thread_that_ended_is_closed_and_its_place_free(
    make_proxy: MakeProxy, kind: type[Thing | Weakless]
) -> None:
    closed: list[int] = []
    proxy = make_proxy(fun=kind, max_size=1, closer=lambda thing: closed.append(thing.number))
    thread = threading.Thread(target=lambda: proxy.number)
    thread.start()
    thread.join()
    assert proxy._get_obj(timeout=10).number == 1
    assert closed == [0]


def test_a_plain_value_is_not_taken_for_dropped_at_the_end_of_its_thread(
    make_proxy: MakeProxy,
) -> None:
    # Equal ints are one object: somebody else may have it. ProxyPatternPool's own tests rely on that.
    proxy = make_proxy(fun=int, max_size=1)
    thread = threading.Thread(target=proxy._get_obj)
    thread.start()
    thread.join()
    with pytest.raises(TimeOut):
        proxy._get_obj(timeout=0.05)


# --- forks -----------------------------------------------------------------------------------------------


class Session(Thing):
    """Notes in a pipe when it is closed or finalized, and by which process."""

    def __init__(self, number: int, report: int) -> None:
        super().__init__(number)
        self.report = report
        self.owner = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.owner:
            os.write(self.report, b"finalized in a child\n")


def test_a_child_starts_with_no_objects_and_makes_its_own(make_pool: MakePool) -> None:
    pool = make_pool(lambda number: (os.getpid(), number), min_size=2, max_size=2, delay=0.01)
    parents = [pool.get(), pool.get()]

    def child() -> tuple[bool, int, int, bool]:
        mine = pool.get(timeout=0)
        wait_until(lambda: pool.stats()["hk_rounds"], "housekeeping in the child")
        parents_thing_refused = pool.stats()["nusing"] == 1
        pool.ret(parents[0])
        still = pool.stats()["nusing"] == 1
        return (
            mine[0] == os.getpid(),
            mine[1],
            pool.stats()["nobjs"],
            parents_thing_refused and still,
        )

    assert Fork(child).result() == (True, 1, 2, True)
    assert pool.stats()["nusing"] == 2
    pool.ret(parents[0])
    assert pool.get(timeout=0) == parents[0]


def test_a_child_neither_closes_nor_finalizes_what_is_its_parents(make_pool: MakePool) -> None:
    reading, writing = os.pipe()
    pool = make_pool(
        lambda number: Session(number, writing),
        min_size=2,
        closer=lambda session: (
            os.write(writing, b"closed\n") if session.owner != os.getpid() else 0
        ),
    )
    held = [pool.get()]
    proxy = Proxy(fun=lambda number: Session(number, writing), max_size=None)
    used, go = threading.Event(), threading.Event()

    def use() -> None:
        proxy._get_obj()
        used.set()
        go.wait(20)

    user = threading.Thread(target=use)
    user.start()
    used.wait(20)
    proxy._get_obj()

    def child() -> tuple[bool, bool]:
        held.clear()
        gc.collect()
        mine = pool.get(timeout=0)
        own = mine.owner == os.getpid(), proxy.owner == os.getpid()
        pool.shutdown(1.0)
        gc.collect()
        return own

    assert Fork(child).result() == (True, True)
    go.set()
    user.join()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b""


def test_a_child_of_a_proxys_thread_gets_an_object_of_its_own(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(fun=lambda number: [os.getpid()], max_size=1)
    mine = proxy._get_obj()

    def child() -> bool:
        return not proxy._has_obj() and proxy._get_obj(timeout=0) == [os.getpid()]

    assert Fork(child).result()
    assert proxy._get_obj() is mine


def test_a_child_shares_the_object_of_the_scope_shared(make_proxy: MakeProxy) -> None:
    proxy = make_proxy("x")
    assert Fork(lambda: proxy._get_obj()).result() == "x"
