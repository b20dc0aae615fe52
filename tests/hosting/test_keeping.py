"""A released lease stays with its worker while nobody waits, and with nobody who must not have it."""

from __future__ import annotations

import os
import select
import signal
import sqlite3
from typing import Any

import pytest

from mppool import PoolManager
from mppool.dbapi import DbApiRecipe
from mppool.errors import CheckoutTimeout
from mppool.hosting import streams
from mppool.hosting.keeping import Flag, Right
from tests.helpers import PATIENCE, Fork, wait_until
from tests.hosting.things import Thing, reset


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has an item for each checkout that asks the host."""
    noted: list[str] = []
    real = streams.Stream.check_out

    def noting(self: Any, *arguments: Any, **more: Any) -> Any:
        noted.append("asked")
        return real(self, *arguments, **more)

    monkeypatch.setattr(streams.Stream, "check_out", noting)
    return noted


def use(pool: Any) -> int:
    with pool.checkout() as thing:
        found: int = thing.echo(5)
    return found


def test_checkouts_back_to_back_ask_nobody(manager: PoolManager, asked: list[str]) -> None:
    pool = manager.pool("p", Thing, max_size=2, placement="host", reset=reset)
    before = 0
    for _ in range(20):
        with pool.checkout() as thing:
            # Each use has a resource that was reset, whoever had it before.
            assert thing.resets == before
            before += 1
    assert asked == ["asked"]
    wait_until(lambda: pool.stats()["counters"]["checkouts"] == 20, "the last release")
    figures = pool.stats()
    assert (figures["size"], figures["in_use"], figures["idle"]) == (1, 0, 1)


def test_what_is_kept_and_not_used_lies_idle_in_the_host(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, placement="host")
    use(pool)
    stream = pool.streams.take()
    assert stream.is_kept
    # The host calls it in after a while: the right is gone, and so is what was lent in advance.
    wait_until(lambda: not _is_there(stream._right), "the end of what is kept")
    pool.streams.put(stream)
    assert use(pool) == 5
    assert pool.stats()["counters"]["opened"] == 1


def _is_there(right: Right) -> bool:
    if right.take():
        right.give()
        return True
    return False


def test_another_process_that_waits_has_it(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host", timeout=PATIENCE)
    use(pool)

    def works() -> int:
        return sum(use(pool) for _ in range(20))

    children = [Fork(works) for _ in range(3)]
    assert works() == 100
    assert [child.result() for child in children] == [100] * 3
    assert pool.stats()["counters"]["opened"] == 1


def test_nobody_else_has_what_was_checked_out_and_not_used_yet(
    manager: PoolManager, asked: list[str]
) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host", timeout=PATIENCE)
    use(pool)
    lease = pool.checkout()
    assert asked == ["asked"]

    def gets_none() -> str:
        try:
            pool.checkout(timeout=0.05)
        except CheckoutTimeout:
            return "none"
        return "some"

    assert Fork(gets_none).result() == "none"
    assert lease.resource.echo(1) == 1
    assert pool.stats()["in_use"] == 1
    lease.release()
    assert Fork(lambda: use(pool)).result() == 5


def test_a_child_leaves_its_parent_what_is_kept(manager: PoolManager, asked: list[str]) -> None:
    pool = manager.pool("p", Thing, max_size=2, placement="host", timeout=PATIENCE)
    use(pool)
    stream = pool.streams.take()
    pool.streams.put(stream)
    right = stream._right

    def has_none() -> list[Any]:
        return [stream.is_closed, stream._right, use(pool), len(asked)]

    assert Fork(has_none).result() == [True, None, 5, 2]
    assert stream._right is right
    assert use(pool) == 5


def test_a_host_that_died_meanwhile_is_noticed_at_the_checkout(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, placement="host", timeout=PATIENCE)
    with pool.checkout() as thing:
        pid = thing.pid()
    os.kill(pid, signal.SIGKILL)
    stream = pool.streams.take()
    end = select.poll()
    end.register(stream._connection.fileno(), select.POLLIN)
    wait_until(lambda: end.poll(0), "the end of the stream")
    pool.streams.put(stream)
    with pool.checkout() as thing:
        assert thing.pid() != pid


def test_a_resource_that_may_not_go_on_is_replaced(manager: PoolManager, asked: list[str]) -> None:
    pool = manager.pool("p", Thing, max_size=1, max_uses=3, placement="host", timeout=PATIENCE)
    assert [use(pool) for _ in range(12)] == [5] * 12
    wait_until(lambda: pool.stats()["counters"]["checkouts"] == 12, "the last release")
    assert pool.stats()["counters"]["worn_out"] >= 3


def test_what_another_identity_opened_is_not_kept_for_this_one(
    manager: PoolManager, asked: list[str]
) -> None:
    pool = manager.pool("p", Thing, placement="host", timeout=PATIENCE)
    use(pool)
    with pool.checkout(identity="ada") as thing:
        thing.value = 8
    with pool.checkout(identity="ada") as thing:
        assert thing.value == 8
    with pool.checkout() as thing:
        assert thing.value == 7
    assert len(asked) >= 3


def test_a_transaction_left_open_is_rolled_back_before_the_next_use(
    manager: PoolManager, tmp_path: Any
) -> None:
    recipe = DbApiRecipe(sqlite3.connect, str(tmp_path / "data"))
    pool = manager.pool("p", recipe, max_size=1, placement="host", timeout=PATIENCE)
    with pool.checkout() as connection:
        connection.execute("create table t (id int)")
        connection.commit()
    for number in range(5):
        with pool.checkout() as connection:
            assert connection.execute("select count(*) from t").fetchone() == (0,)
            connection.execute("insert into t values (?)", (number,))


@pytest.mark.parametrize("options", [{"check_idle_for": 0.0}, {"max_lease_warn": 60.0}])
def test_pools_that_look_at_each_checkout_keep_nothing(
    manager: PoolManager, asked: list[str], options: dict[str, float]
) -> None:
    pool = manager.pool("p", Thing, placement="host", timeout=PATIENCE, **options)  # type: ignore[arg-type]
    assert [use(pool) for _ in range(3)] == [5] * 3
    assert asked == ["asked"] * 3


def test_a_right_is_for_one_end_and_a_flag_for_all() -> None:
    ours = Right()
    theirs = Right(os.dup(ours.fileno()))
    assert not theirs.take()
    ours.give()
    assert theirs.take()
    assert not ours.take()
    flag = Flag()
    seen = Flag(os.dup(flag.fileno()))
    assert not seen.is_set()
    flag.set(True)
    assert seen.is_set()
