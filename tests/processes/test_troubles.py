"""What the system refuses a process, what hangs in it, and the signals that it gets."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mppool import (
    ConfigurationError,
    InProcessManager,
    PoolError,
    PoolManager,
    ServerUnavailable,
)
from mppool.process.executor import MOST_THREADS
from mppool.worker.member import name_process
from tests.helpers import Fork, wait_until
from tests.processes.witness import Witness

Forks = Callable[..., Fork]
Pythons = Callable[..., "subprocess.Popen[str]"]


# --- descriptors and threads -----------------------------------------------------------------------------


@contextmanager
def _no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd"))) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    taken = []
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("attached", [False, True])
def test_without_descriptors_every_word_to_the_server_is_a_pool_error(
    manager: PoolManager, fork: Forks, attached: bool
) -> None:
    pool = manager.pool("p", object, max_size=2)
    with pool.checkout(timeout=20):
        pass

    def child() -> str:
        if attached:
            with pool.checkout(timeout=20):
                pass
        other = manager.pool("q", object, max_size=2)
        with _no_descriptors():
            manager._link._connections.idle.clear()
            for word in (
                lambda: other.checkout(timeout=1),
                lambda: other.checkout(timeout=0.05),
                lambda: other.checkout(timeout=0),
                other.reset,
                manager.stats,
                manager.start,
                lambda: manager.address,
                lambda: manager.server_pid,
            ):
                try:
                    word()
                except ConfigurationError as error:  # it advises to remove a file that is all right
                    raise AssertionError(str(error)) from error
                except PoolError:
                    continue
        with other.checkout(timeout=20):
            return "served"

    assert fork(child).result() == "served"


@pytest.mark.parametrize("times", [1, 3, 10_000])
def test_a_process_that_lacked_one_descriptor_hears_the_server_later(
    manager: PoolManager,
    witness: Witness,
    fork: Forks,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    """One EMFILE while attaching left the process without its background thread for ever."""
    pool = manager.pool("p", witness.recipe(), max_size=2)
    left, real = [times], os.eventfd

    def eventfd(*arguments: int) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*arguments)

    def child() -> bool:
        os.eventfd = eventfd
        if times > 100:
            with pytest.raises(ServerUnavailable, match="ulimit -n"):
                pool.checkout(timeout=2)
            left[0] = 0
        leases = [pool.checkout(timeout=20) for _ in range(2)]
        for lease in leases:
            lease.release()
        neighbour = Fork(lambda: pool.checkout(timeout=20).resource.number)
        return bool(neighbour.result())

    assert fork(child).result()


def test_without_threads_a_checkout_is_a_pool_error(manager: PoolManager, fork: Forks) -> None:
    pools = [one.pool("p", object, max_size=2) for one in (manager, InProcessManager("m"))]

    def child() -> str:
        real = threading.Thread.start

        def no_start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        for pool in pools:
            threading.Thread.start = no_start  # type: ignore[method-assign]
            with pytest.raises(ServerUnavailable, match="thread"):
                pool.checkout(timeout=1)
            threading.Thread.start = real  # type: ignore[method-assign]
            for _ in range(2):
                with pool.checkout(timeout=20):
                    pass
        return "served"

    assert fork(child).result() == "served"


def test_a_missing_background_thread_means_contended_and_is_started_again(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)

    def child() -> str:
        lease = pool.checkout(timeout=20)
        link = manager._link

        def ended(self: object) -> None:
            del manager._member.collect_leaked
            raise SystemExit

        manager._member.collect_leaked = lambda: ended(None)  # type: ignore[method-assign]
        link.wake()
        wait_until(lambda: link.thread.has_ended, "the end of the thread")
        lease.release()  # warm from now on, and looked after all the same
        neighbour = Fork(lambda: pool.checkout(timeout=20).resource.number)
        assert neighbour.result()
        with pool.checkout(timeout=20):
            return "served"

    assert fork(child).result() == "served"


_AT_EXIT = """
import atexit, sys
from mppool import PoolManager, InProcessManager, PoolError
managers = PoolManager("t", linger=0.0), InProcessManager("x")
pools = [manager.pool("p", object, max_size=2) for manager in managers]
if len(sys.argv) > 1:
    for pool in pools:
        with pool.checkout(timeout=20): pass
def last():
    for pool in pools:
        try:
            with pool.checkout(timeout=5): pass
            pool.checkout(timeout=5).discard()
        except PoolError: pass
    print("polite")
atexit.register(last)
"""


@pytest.mark.parametrize("arguments", [(), ("warm",)])
def test_the_end_of_the_interpreter_is_served_or_a_pool_error(
    manager: PoolManager, python: Pythons, arguments: tuple[str, ...]
) -> None:
    output = python(_AT_EXIT, *arguments).communicate(timeout=60)[0]
    assert output == "polite\n"


def test_nothing_warns(manager: PoolManager, python: Pythons) -> None:
    code = """
import warnings
warnings.simplefilter("error")
from mppool import PoolManager
pool = PoolManager("t", linger=0.0).pool("p", object, max_size=2)
with pool.checkout(timeout=20): pass
pool.checkout(timeout=20).discard()
pool.stats(); pool.reset(); pool.drain(1)
"""
    assert python(code).communicate(timeout=60)[0] == ""


@pytest.mark.parametrize("identity", ["\ud800", "x" * 17_000_000, "a\udcff"])
def test_what_is_no_identity_is_told_so(manager: PoolManager, identity: str) -> None:
    pool = manager.pool("p", lambda opening: object(), max_size=2)
    with pytest.raises(ConfigurationError, match="identity"):
        pool.checkout(timeout=5, identity=identity)
    with pool.checkout(timeout=20):
        pass


def test_a_label_of_bytes_that_are_no_text_is_written_out(
    manager: PoolManager, fork: Forks
) -> None:
    pool = manager.pool("p", object, max_size=2)

    def child() -> list[str]:
        name_process("worker \udcff")
        with pool.checkout(timeout=20):
            return [one["label"] for one in manager.stats()["processes"]]

    assert fork(child).result() == ["worker \\udcff"]


# --- signals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [0.5, 0.01])
def test_signals_do_not_prolong_a_wait(manager: PoolManager, fork: Forks, period: float) -> None:
    pool = manager.pool("p", object, max_size=2)

    def child() -> tuple[str, float]:
        leases = [pool.checkout(timeout=20)]
        server = manager.server_pid
        assert server is not None
        os.kill(server, signal.SIGSTOP)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, period, period)
        began = time.monotonic()
        try:
            leases.append(pool.checkout(timeout=1.5))
        except PoolError as error:
            return type(error).__name__, time.monotonic() - began
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.kill(server, signal.SIGCONT)
        return "a lease", 0.0

    kind, seconds = fork(child).result()
    assert kind == "CheckoutTimeout"
    assert 1.4 < seconds < 15.0


# --- what hangs ------------------------------------------------------------------------------------------


def test_closes_that_hang_hold_up_nothing_but_their_own_slots(manager: PoolManager) -> None:
    go = threading.Event()
    many = MOST_THREADS + 6
    dead = manager.pool("dead", object, max_size=many, close=lambda one: go.wait(60))
    good = manager.pool("good", object, max_size=4, reset=lambda one: None)
    leases = [dead.checkout(timeout=20) for _ in range(many)]
    for lease in leases:
        lease.release()
    try:
        dead.reset()
        wait_until(lambda: dead.stats()["size"] == many, "all closes hang")

        async def use() -> float:
            checkout = good.acheckout(timeout=20)
            await checkout.__aenter__()
            began = time.monotonic()
            await asyncio.wait_for(checkout.__aexit__(None, None, None), 10)
            return time.monotonic() - began

        assert asyncio.run(use()) < 5
        lost = good.checkout(timeout=20)
        del lost
        wait_until(lambda: good.stats()["counters"]["leaked"] == 1, "the leak is found")
        wait_until(lambda: good.stats()["size"] == 0, "what leaked is closed")
    finally:
        go.set()
    wait_until(lambda: dead.stats()["size"] == 0, "all are closed")
