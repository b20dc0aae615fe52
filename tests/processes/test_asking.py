"""A checkout that waits for nobody asks the server by the shortest way, and keeps all promises there."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from mppool import CheckoutTimeout, PoolClosed, PoolManager
from mppool.worker.checkout import ColdCheckout
from tests.helpers import Fork, wait_until

Forks = Callable[..., Fork]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process waits for the answer to its question: on a busy machine it comes late."""
    monkeypatch.setattr("mppool.link.server_link.ASK_GRACE_S", 60.0)
    monkeypatch.setattr("mppool.worker.checkout.ASK_GRACE_S", 60.0)


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def _functions_passed(function: Callable[[], Any]) -> list[str]:
    passed: list[str] = []

    def note(frame: Any, event: str, argument: object) -> None:
        if event == "call" and frame.f_globals["__name__"].startswith("mppool."):
            passed.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        function()
    except CheckoutTimeout:
        pass
    finally:
        sys.setprofile(None)
    return passed


def test_a_refusal_passes_few_functions(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decision 11: their number is the price, and a refusal costs no more than a call of a BaseManager's proxy."""
    monkeypatch.setattr("mppool.worker.checkout.FRESH_S", 60.0)
    pool = manager.pool("p", object, max_size=1)
    by_default = manager.pool("by-default", object, max_size=1, timeout=0)
    with pool.checkout(timeout=10), by_default.checkout(timeout=10):
        for ask in (
            lambda: pool.checkout(timeout=0),
            lambda: pool.checkout(0.0),
            by_default.checkout,
        ):
            with pytest.raises(CheckoutTimeout):
                ask()
            # The least of some: where the answer takes its time, waiting for it passes more.
            passed = min((_functions_passed(ask) for _ in range(30)), key=len)
            assert len(passed) <= 6, passed
            assert "is_stopped" not in passed  # which reads a file


@pytest.mark.usefixtures("patient")
def test_each_refusal_is_an_error_of_its_own_and_is_counted_once(manager: PoolManager) -> None:
    """Also where several threads are refused together: no lock is taken for that (decision 0106)."""
    pool = manager.pool("p", object, max_size=1)
    errors: list[CheckoutTimeout] = []

    def ask() -> None:
        for _ in range(200):
            with pytest.raises(CheckoutTimeout) as refused:
                pool.checkout(timeout=0)
            errors.append(refused.value)

    with pool.checkout(timeout=10):
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool.stats()["counters"]["timeouts"] == 800
        assert pool.stats()["counters"]["timeouts"] == 800, "they are counted once"
    assert len({id(error) for error in errors}) == 800
    assert [str(error) for error in errors if "1 resource exists" not in str(error)] == []
    assert all(error.__context__ is error.__cause__ is None for error in errors)
    again = pickle.loads(pickle.dumps(errors[0]))
    assert (type(again), again.args) == (CheckoutTimeout, errors[0].args)


def test_a_refusal_keeps_nothing_alive(manager: PoolManager) -> None:
    """An error that is referred to by a frame of its own traceback would wait for the garbage collector."""
    pool = manager.pool("p", object, max_size=1)

    def outlives() -> bool:
        try:
            pool.checkout(timeout=0)
        except CheckoutTimeout as error:
            seen = weakref.ref(error)
        return seen() is not None

    with pool.checkout(timeout=10):
        gc.disable()
        try:
            # Not each: where the shortest way cannot be gone, the longer one is.
            assert not all(outlives() for _ in range(20))
        finally:
            gc.enable()


def test_what_can_be_had_is_opened(manager: PoolManager) -> None:
    pool = manager.pool("p", object, max_size=3)
    first = pool.checkout(timeout=10)
    leases = [pool.checkout(timeout=0) for _ in range(2)]
    with pytest.raises(CheckoutTimeout, match="3 resources exist"):
        pool.checkout(timeout=0)
    assert len({id(lease.resource) for lease in (first, *leases)}) == 3
    for lease in (first, *leases):
        lease.release()
    pool.close()
    with pytest.raises(PoolClosed):
        pool.checkout(timeout=0)


@pytest.mark.usefixtures("patient")
def test_it_is_seen_where_the_server_is_stopped_and_that_it_goes_on(manager: PoolManager) -> None:
    pool = manager.pool("p", object, max_size=1)
    lease = pool.checkout(timeout=10)
    with pytest.raises(CheckoutTimeout, match="1 resource exists"):
        pool.checkout(timeout=0)
    server = manager.server_pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        wait_until(lambda: _is_stopped(server), "it has stopped")
        for _ in range(3):  # the first by the connection that is there, the others without one
            began = time.monotonic()
            with pytest.raises(CheckoutTimeout, match="the server is stopped"):
                pool.checkout(timeout=0)
            assert time.monotonic() - began < 30.0
    finally:
        os.kill(server, signal.SIGCONT)
    lease.discard()
    wait_until(lambda: not pool.stats()["size"], "the slot to be free")
    pool.checkout(timeout=0).release()  # what was said before went to nobody
    assert pool.stats()["size"] == 1


def test_a_server_that_is_only_slow_is_waited_for(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mppool.link.connection._AT_ONCE_MS", 0)
    monkeypatch.setattr("mppool.link.server_link.ASK_GRACE_S", 60.0)
    pool = manager.pool("p", object, max_size=1)
    with pool.checkout(timeout=10):
        for _ in range(100):
            with pytest.raises(CheckoutTimeout, match="1 resource exists"):
                pool.checkout(timeout=0)


def test_the_death_of_the_server_is_no_raw_error(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mppool.link.session.START_GRACE_S", 30.0)  # the machine may be busy
    pool = manager.pool("p", object, max_size=1)
    with pool.checkout(timeout=10):
        for _ in range(5):
            server = wait_until(lambda: manager.server_pid, "a server")
            assert server is not None
            os.kill(server, signal.SIGKILL)
            with pytest.raises(CheckoutTimeout):
                pool.checkout(timeout=0)


@pytest.mark.parametrize("step", ["send", "poll", "taken in"])
def test_an_interrupt_leaves_nothing_behind(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It strikes before, while and after the server grants what was asked for."""
    from mppool.link.connection import Connection
    from mppool.link.server_link import ServerLink

    pool = manager.pool("p", object, max_size=2)
    lease = pool.checkout(timeout=10)
    with monkeypatch.context() as patched:

        def interrupted(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        if step == "send":
            patched.setattr("mppool.link.connection.encode", interrupted)
        elif step == "poll":
            exchange = Connection.exchange
            patched.setattr(
                Connection,
                "exchange",
                lambda self, *_: exchange(self, *_[:2]) and interrupted(),
            )
        else:
            patched.setattr(ServerLink, "_answered", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.checkout(timeout=0)
    wait_until(lambda: pool.stats()["size"] == 1, "the grant to be given back")
    with pool.checkout(timeout=10):
        pass
    lease.release()


def test_a_checkout_that_waits_goes_the_long_way(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float | None] = []
    run = ColdCheckout.run
    monkeypatch.setattr(
        ColdCheckout, "run", lambda self, *_: (begun.append(self._timeout), run(self, *_))[1]
    )
    pool = manager.pool("p", object, max_size=1)
    with pool.checkout(timeout=10), pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0.01)
    assert begun == [10, 0.01]
