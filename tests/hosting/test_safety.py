"""What dies, hangs, is interrupted or forked: no shifted answer, no lost slot, and an error that says what happened."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from mppool.dbapi import DbApiRecipe
from mppool.errors import CheckoutTimeout, ForkedLease, StaleLease
from mppool.ids import is_stopped
from mppool.odbc import OdbcRecipe, driver_manager
from tests.helpers import PATIENCE, Fork, is_alive, wait_until
from tests.hosting.things import Thing, cancel, reset
from tests.integrations.postgresql import Database


class TooLate(Exception):
    """What a signal handler raises."""


@pytest.fixture
def alarm() -> Any:
    """Has the main thread interrupted after so many seconds."""

    def late(*_: Any) -> None:
        raise TooLate

    before = signal.signal(signal.SIGALRM, late)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_after_an_interrupted_call_no_answer_is_ever_another_ones(
    manager: PoolManager, alarm: Callable[[float], None]
) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host", cancel=cancel)
    for _ in range(3):
        lease = pool.checkout()
        thing = lease.resource

        def strike() -> None:
            wait_until(lambda: lease._hold.stream._pending, "the call")  # noqa: B023
            signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

        striker = threading.Thread(target=strike)

        def left() -> None:
            striker.start()  # noqa: B023
            thing.slow(PATIENCE, "of the call that was left")  # noqa: B023

        with pytest.raises(TooLate):
            left()
        striker.join()
        with pytest.raises(StaleLease, match="interrupted"):
            thing.echo(1)
        lease.release()
    with pool.checkout() as thing:
        for number in range(1000):
            assert thing.echo(number) == number


# One that strikes in a callback of a weak reference is lost, and said to be ignored.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_any_instruction_shift_nothing(
    manager: PoolManager, alarm: Callable[[float], None]
) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host")
    struck = number = 0
    while struck < 15:
        try:
            with pool.checkout() as thing:
                alarm(0.0003 * (struck % 7 + 1))
                for _ in range(3000):
                    number += 1
                    answer = thing.echo(number)
                    assert answer == number
        except TooLate:
            struck += 1
        except StaleLease:
            pass  # it struck in a finalizer, which swallows it, in the middle of a call
    alarm(0)
    with pool.checkout() as thing:
        assert thing.echo("last") == "last"


def test_a_killed_worker_loses_its_lease_and_nobody_elses(
    manager: PoolManager, postgresql: Database
) -> None:
    pool = manager.pool("p", OdbcRecipe(postgresql.connection_string), max_size=1, placement="host")
    with pool.checkout() as connection:
        connection.execute("create table t (id int)")
        connection.commit()
    reading, writing = os.pipe()

    def in_a_transaction() -> None:
        with pool.checkout() as connection:
            connection.execute("insert into t values (1)")
            os.write(writing, b"x")
            connection.execute("select pg_sleep(60)")

    child = Fork(in_a_transaction)
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)
    child.kill()
    with pool.checkout(timeout=PATIENCE) as connection:
        assert connection.execute("select count(*) from t").fetchval() == 0
    assert postgresql.held() <= 1


def test_a_worker_that_dies_between_two_calls_is_rolled_back_and_its_resource_goes_on(
    manager: PoolManager, tmp_path: Path
) -> None:
    recipe = DbApiRecipe(sqlite3.connect, str(tmp_path / "a.db"))
    pool = manager.pool("p", recipe, max_size=1, placement="host")
    with pool.checkout() as connection:
        connection.execute("create table t (id int)")

    def leaves_it_open() -> None:
        lease = pool.checkout()
        lease.resource.execute("insert into t values (1)")
        os.kill(os.getpid(), signal.SIGKILL)

    child = Fork(leaves_it_open)
    wait_until(child._has_ended, "the end of the worker")
    with pool.checkout(timeout=PATIENCE) as connection:
        assert connection.execute("select count(*) from t").fetchone() == (0,)
    counters = pool.stats()["counters"]
    assert (counters["opened"], counters["closed"]) == (1, 0)
    child.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_host_that_dies_takes_its_resources_along_and_nothing_else(
    manager: PoolManager, number: signal.Signals
) -> None:
    pool = manager.pool("p", Thing, max_size=2, placement="host")
    manager.start()  # else its server leaves with the host, when nobody is attached
    server = manager.server_pid
    with pool.checkout() as thing, pool.checkout() as other:
        host = thing.pid()
        with pytest.raises(StaleLease, match=r"outcome is unknown") as caught:
            thing.die(number)
        assert f"pid {host}" in str(caught.value)
        with pytest.raises(StaleLease):
            other.echo(1)
    leases = [pool.checkout(timeout=PATIENCE) for _ in range(2)]
    assert leases[0].resource.pid() not in (host, server)
    for lease in leases:
        lease.release()
    assert manager.server_pid == server


def test_the_error_says_whether_a_commit_was_in_flight(
    manager: PoolManager, tmp_path: Path
) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host")
    with pool.checkout() as thing, pytest.raises(StaleLease, match=r"commit.*outcome is unknown"):
        thing.commit()
    recipe = DbApiRecipe(sqlite3.connect, str(tmp_path / "a.db"))
    databases = manager.pool("d", recipe, max_size=1, placement="host")
    with databases.checkout() as connection:
        connection.execute("create table t (id int)")
        connection.execute("insert into t values (1)")
        processes = databases.stats()["processes"]
        (host,) = (one["pid"] for one in processes if one["label"].startswith("host"))
        os.kill(host, signal.SIGKILL)
        wait_until(lambda: not is_alive(host), "the end of the host")
        with pytest.raises(StaleLease, match="rolled back") as caught:
            connection.execute("insert into t values (2)")
        # What handles the driver's error when a connection is lost handles this one.
        assert isinstance(caught.value, sqlite3.OperationalError)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (type(again), str(again)) == (type(caught.value), str(caught.value))
    with databases.checkout(timeout=PATIENCE) as connection:
        assert connection.execute("select count(*) from t").fetchone() == (0,)


def test_a_host_that_is_stopped_delays_nobody_beyond_the_timeout(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host")
    lease = pool.checkout()
    host = lease.resource.pid()
    lease.discard()  # of one that is released the next lease may be here already
    os.kill(host, signal.SIGSTOP)
    wait_until(lambda: is_stopped(host), "the host's stop")
    try:
        with pytest.raises(CheckoutTimeout, match="is stopped"):
            pool.checkout(timeout=0.2)
        with pytest.raises(CheckoutTimeout):
            pool.checkout(timeout=0)
    finally:
        os.kill(host, signal.SIGCONT)
    with pool.checkout(timeout=PATIENCE) as thing:  # of the same host, unless it has left meanwhile
        assert thing.echo(1) == 1


def test_a_worker_that_says_nothing_loses_its_lease(manager: PoolManager, tmp_path: Path) -> None:
    recipe = DbApiRecipe(sqlite3.connect, str(tmp_path / "a.db"))
    pool = manager.pool("p", recipe, max_size=1, placement="host", max_quiet=2.0)
    lease = pool.checkout()
    lease.resource.execute("create table t (id int)")
    lease.resource.execute("insert into t values (1)")
    with pool.checkout(timeout=PATIENCE) as connection:  # after it has been quiet for long enough
        assert connection.execute("select count(*) from t").fetchone() == (0,)
    with pytest.raises(StaleLease, match="max_quiet"):
        lease.resource.execute("select 1")
    lease.release()
    with pool.checkout() as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_call_is_cancelled_from_another_thread(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host", cancel=cancel)
    lease = pool.checkout()
    began = threading.Event()

    def soon() -> None:
        began.wait()
        assert lease.cancel() is True

    other = threading.Thread(target=soon)
    other.start()
    began.set()
    assert lease.resource.slow(PATIENCE, "cancelled") == "cancelled"
    other.join()
    lease.release()
    with pool.checkout() as thing:
        assert thing.cancelled is False  # another one


def test_a_child_does_nothing_with_its_parents_lease(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=2, placement="host", reset=reset)
    lease = pool.checkout()
    thing = lease.resource
    part = thing.part("mine")

    def in_a_child() -> Any:
        with pytest.raises(ForkedLease):
            thing.echo(1)
        with pytest.raises(ForkedLease):
            lease.resource  # noqa: B018
        lease.release()
        with pool.checkout() as own:
            return own.echo("child")

    for _ in range(3):
        child = Fork(in_a_child)
        assert thing.echo("parent") == "parent"
        assert child.result() == "child"
    assert (part.shout(), thing.resets) == ("MINE", 0)
    lease.release()


def test_leases_are_given_back_by_those_who_forget_them(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host")
    thing = pool.checkout().resource
    with pytest.raises(Exception, match="check out again"):
        thing.echo(1)
    with pool.checkout(timeout=PATIENCE) as again:
        assert again.echo(1) == 1


def test_many_processes_on_few_resources_are_all_served(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=2, placement="host", timeout=PATIENCE)

    def works() -> int:
        for number in range(20):
            with pool.checkout() as thing:
                assert thing.echo((os.getpid(), number)) == (os.getpid(), number)
        return 20

    children = [Fork(works) for _ in range(8)]
    assert [child.result() for child in children] == [20] * 8
    stats = pool.stats()
    assert stats["counters"]["opened"] <= 2
    assert stats["counters"]["timeouts"] == 0


def test_killed_hosts_and_workers_in_between_cost_no_capacity(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=2, placement="host", hosts=2, timeout=PATIENCE)

    def works() -> int:
        served = 0
        while served < 12:
            try:
                with pool.checkout() as thing:
                    token = (os.getpid(), served)
                    assert thing.echo(token) == token
                    if served == 4 and os.getpid() % 3 == 0:
                        thing.die()
                    served += 1
            except StaleLease:
                served += 1
        return served

    children = [Fork(works) for _ in range(4)]
    victim = Fork(works)
    time.sleep(0.01)
    victim.kill()
    assert [child.result() for child in children] == [12] * 4
    leases = [pool.checkout() for _ in range(2)]
    for lease in leases:
        lease.release()
    assert pool.stats()["size"] <= 2


def test_a_session_that_was_dead_before_its_first_statement_is_replaced_and_never_later(
    manager: PoolManager, postgresql: Database
) -> None:
    pool = manager.pool(
        "p",
        OdbcRecipe(postgresql.connection_string),
        max_size=1,
        placement="host",
        check_idle_for=None,
    )

    def kill(pid: int) -> None:
        postgresql.server.query("select pg_terminate_backend(?)", pid)
        wait_until(lambda: pid not in postgresql.session_pids(), "the end of the session")

    with pool.checkout() as connection:
        before = connection.execute("select pg_backend_pid()").fetchval()
    with pool.checkout() as connection:
        kill(before)
        after = connection.execute("select pg_backend_pid()").fetchval()
        assert after != before
        kill(after)
        with pytest.raises(driver_manager.load().Error):
            connection.execute("select 1")
