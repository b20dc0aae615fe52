"""Any object in a host: what is declared, what travels, what stands for it."""

from __future__ import annotations

import datetime as dt
import decimal
import os
import threading
import uuid
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from mppool import InProcessManager, PoolManager, Recipe
from mppool.errors import ConfigurationError, LeaseReleased, PoolError
from mppool.hosting.rows import packed, unpacked
from tests.helpers import PATIENCE, Fork, wait_until
from tests.hosting.things import Custom, Refused, Thing, cannot_open, reset


def test_a_resource_lives_in_a_host_and_is_driven_from_here(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host")
    with pool.checkout() as thing:
        host = thing.pid()
        assert host != os.getpid()
        assert thing.value == 7
        thing.value = 8
        assert thing.value == 8
        assert thing.echo(1, two=2) == (1, {"two": 2})
        assert (len(thing), thing["a"]) == (3, 1)
        thing["b"] = 5
        assert thing["b"] == 5
        with thing as entered:
            assert entered is thing
        assert thing.left_by is None
        with pytest.raises(Refused) as caught:
            thing.fail(5)
        assert (caught.value.args, caught.value.code) == ((5, "no"), 5)
        with pytest.raises(AttributeError):
            thing.nothing  # noqa: B018
        with pytest.raises(KeyError):
            thing["z"]
    stats = pool.stats()
    assert stats["placement"] == "host"
    assert [one["label"] for one in stats["processes"]] == ["host 1 of p"]
    with pool.checkout() as thing:
        assert (thing.pid(), thing["b"]) == (host, 5)  # the same one


def test_a_label_is_shown_with_the_process_that_uses_the_resource(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host")
    with pool.checkout(label="report"):
        (one,) = pool.stats()["resources"]
        assert one["label"] == "report"
        assert one["thread"] == f"pid {os.getpid()}, {threading.current_thread().name}"
    with pool.checkout() as thing:
        # The host has heard of the release by then, for which nobody waits.
        assert thing.echo(1) == 1
        (one,) = pool.stats()["resources"]
        assert (one["label"], one["thread"]) == ("", "")


def test_processes_share_what_a_host_has(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host")

    def used() -> tuple[int, int]:
        with pool.checkout() as thing:
            thing["n"] = thing.echo(os.getpid())
            return thing.pid(), thing["n"]

    here = used()
    children = [Fork(used) for _ in range(4)]
    there = [child.result() for child in children]
    assert {host for host, _ in there} == {here[0]}
    assert [mine for _, mine in there] == [child.pid for child in children]
    assert pool.stats()["counters"]["opened"] == 1


def test_what_is_returned_and_no_value_stays_in_the_host_as_long_as_the_lease(
    manager: PoolManager,
) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host", reset=reset)
    with pool.checkout() as thing:
        part = thing.part("one")
        assert (part.name, part.shout()) == ("one", "ONE")
        assert thing.takes(part) == "Part one"
        assert [each.name for each in thing.parts()] == ["one", "two"]
        thing.echo(0)  # takes along what is gone
        assert thing.parts_alive() == 1
        again = thing.echo(part)
        assert again is part
    with pytest.raises(LeaseReleased):
        part.shout()
    with pytest.raises(LeaseReleased):
        thing.pid()
    with pool.checkout() as thing:
        assert thing.parts_alive() == 0
        assert thing.resets == 1
        with pytest.raises(PoolError, match="another lease"):
            thing.takes(part)


VALUES = [
    None, True, 0, -(2**63), 2**64, -(10**40), 1.5, float("inf"), "text", "\ud800", "", b"\0bytes", bytearray(b"x"), 2j,
    (1, (2, "x")), [1, [None]], {"a": 1}, {1: (2,)}, {(1, 2): 3}, {1, 2}, frozenset({3}),
    decimal.Decimal("1.10"), uuid.UUID(int=5), dt.date(2026, 1, 2), dt.time(1, 2, 3, 4),
    dt.datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001
    dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc),
    dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
    dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    dt.timedelta(days=-1, microseconds=3), [(1, "a"), (2, "b"), (3, "c"), (4, "d")],
]  # fmt: skip


def test_values_travel_both_ways_as_they_are(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host")
    with pool.checkout() as thing:
        for value in VALUES:
            back = thing.echo(value)
            assert (back, type(back)) == (value, type(value))
            if isinstance(value, dt.datetime):
                assert (back.tzinfo, back.fold) == (value.tzinfo, value.fold)
        assert thing.echo(float("nan")) != thing.echo(float("nan"))
        assert thing.echo(memoryview(b"x")).tobytes() == b"x"
        with pytest.raises(ConfigurationError, match="values='pickle'"):
            thing.echo(Custom(3))
        assert thing.echo(1) == 1  # the stream is as good as before


ROWS = [
    [(1, "a", None), (2, "b", 2.5)],
    [(decimal.Decimal("1.10"), dt.date(2026, 1, 2)), (None, None), (decimal.Decimal("NaN"), dt.date.min)],
    [(one,) for one in VALUES if isinstance(one, dt.datetime)],
    [(dt.datetime(2026, 1, 2, 3, 4, 5, 6), dt.time(1, 2), uuid.UUID(int=3), dt.timedelta(-1, 2, 3))] * 9,  # noqa: DTZ001
    [(dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc), dt.time(1, tzinfo=dt.timezone.utc))],
    [(Custom, decimal.Decimal(1)), ("x", 5)],
    [{"a": decimal.Decimal(1)}],
    [(), ()],
    [],
]  # fmt: skip


@pytest.mark.parametrize("rows", ROWS, ids=range(len(ROWS)))
def test_rows_are_as_they_were(rows: list[Any]) -> None:
    for many in (rows, rows * 9):  # few are pickled, many go column by column
        assert repr(unpacked(packed(many, None))) == repr(many)
    back = unpacked(packed(rows * 9, None))[: len(rows)]
    assert [type(row) for row in back] == [type(row) for row in rows]


def test_other_values_travel_where_the_pool_says_so(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host", values="pickle")
    with pool.checkout() as thing:
        assert thing.echo(Custom(3)).number == 3


class WithLambda(Recipe[Thing]):
    def __init__(self) -> None:
        self.hook = lambda: 1

    def open(self, opening: Any) -> Thing:
        return Thing()


def test_a_recipe_that_cannot_travel_is_refused_at_once(manager: PoolManager) -> None:
    def closure() -> Thing:
        return Thing()

    for recipe in (lambda: Thing(), closure, WithLambda()):
        with pytest.raises(ConfigurationError, match="top of a module"):
            manager.pool("p", recipe, placement="host")
    with pytest.raises(ConfigurationError, match="open_in_caller"):
        manager.pool("p", Thing, placement="host", open_in_caller=True)


@pytest.mark.parametrize("given", [{"hosts": 2}, {"values": "pickle"}, {"max_quiet": 1.0}], ids=str)
def test_what_goes_with_hosts_alone_is_refused_without(
    manager: PoolManager, given: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="placement='host'"):
        manager.pool("p", Thing, **given)


def test_where_there_can_be_no_host_that_is_said(manager: PoolManager) -> None:
    async def opener() -> Thing:
        return Thing()

    with pytest.raises(ConfigurationError, match="apool"):
        manager.apool("p", opener, placement="host")
    with pytest.raises(ConfigurationError, match="PoolManager"):
        InProcessManager().pool("p", Thing, placement="host")


def test_a_failing_open_is_told_with_its_cause(manager: PoolManager) -> None:
    pool = manager.pool("p", cannot_open, placement="host")
    with pytest.raises(PoolError, match="there is none") as caught:
        pool.checkout(timeout=30)
    assert isinstance(caught.value.__cause__, ConfigurationError)


def test_two_threads_cannot_use_one_lease_at_the_same_time(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host")
    with pool.checkout() as thing:
        done: list[Any] = []

        def slowly() -> None:
            while not done:
                try:
                    done.append(thing.slow(2.0, "slow"))
                except PoolError:
                    continue  # this thread's own call was first

        other = threading.Thread(target=slowly)
        other.start()

        def refused() -> bool:
            try:
                thing.echo(1)
            except PoolError as error:
                return "another thread" in str(error)
            return False

        wait_until(refused, "the other thread's call")
        other.join()
        assert done == ["slow"]
        assert thing.echo(2) == 2


def test_hosts_share_the_cap(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=2, placement="host", hosts=2)
    with pool.checkout() as one, pool.checkout() as two:
        assert one.pid() != two.pid()
        with pytest.raises(TimeoutError):
            pool.checkout(timeout=0)
    assert pool.stats()["size"] <= 2


def test_a_block_of_the_manager_ends_its_hosts(manager: PoolManager) -> None:
    with manager:
        pool = manager.pool("p", Thing, max_size=2, placement="host", min_size=2)
        assert pool.wait_ready()
        with pool.checkout() as thing:
            assert pool.lease_of(thing)._local is pool._local
        assert pool.stats()["size"] == 2
    assert manager.server_pid is None


def test_nothing_of_a_host_reaches_a_core_file(manager: PoolManager) -> None:
    """The tokens of its sessions lie in its memory. The kernel gives the files of such a process to root."""
    pool = manager.pool("p", Thing, max_size=1, placement="host")
    with pool.checkout(timeout=PATIENCE) as thing:
        assert thing.core_limit() == 0
        assert not thing.is_dumpable()
