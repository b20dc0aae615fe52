"""Scripts whose processes are forked by the C library: no hook of Python runs in their children.

Each is run by an interpreter of its own (test_forks_unannounced.py), with the path of a witness and a directory.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mppool import CheckoutTimeout, ForkedLease, InProcessManager, PoolManager
from mppool.process import fork as forking
from tests.helpers import Fork
from tests.processes.witness import Session, SessionRecipe

MAX_SIZE = 6


def note(path: Path, what: str) -> bool:
    """Write down what happened in which process, with one system call."""
    descriptor = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(descriptor, f"{what} in {os.getpid()}\n".encode())
    os.close(descriptor)
    return True


class Noting(SessionRecipe):
    """Writes down which hooks that speak on the session were called."""

    def __init__(self, path: Any, asked: Path) -> None:
        super().__init__(path)
        self._asked = asked

    def reset(self, session: Session) -> None:
        note(self._asked, "reset")

    def check(self, session: Session) -> bool:
        return note(self._asked, "check")


class CFork(Fork):
    """A child made by the C library's fork. The interpreter's lock stays held, as in uwsgi."""

    def fork(self) -> int:
        return int(ctypes.PyDLL(None).fork())

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        real = os.fork
        os.fork = self.fork
        try:
            super().__init__(_restoring(function, real), *arguments)
        finally:
            os.fork = real


class NoticedCFork(CFork):
    """The same, and the first that runs in the child is mppool: who lets go of the lock before that can hang in CPython."""

    def fork(self) -> int:
        pid = super().fork()
        if pid == 0:
            forking.notice_fork()
        return pid


def _restoring(function: Callable[..., Any], real: Callable[[], int]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        os.fork = real
        return function(*arguments)

    return run


def script_checkout(path: str, directory: str) -> None:
    """A checkout in the child gets a resource of the child's own, and the parent's is unharmed."""
    pool = PoolManager("t", linger=0.0).pool("p", SessionRecipe(path), max_size=2)
    lease = pool.checkout(timeout=10)
    idle = pool.checkout(timeout=10)
    lease.release()
    theirs = lease, idle

    def child() -> str:
        with pytest.raises(CheckoutTimeout):  # what lies idle in the parent cannot be told yet
            pool.checkout(timeout=0)
        with pool.checkout(timeout=10) as mine:
            mine.ask("the child")
            with pytest.raises(ForkedLease):
                theirs[1].resource  # noqa: B018
        return "ok"

    assert CFork(child).result() == "ok"
    idle.resource.ask("unharmed")
    idle.release()
    with pool.checkout(timeout=10) as session:
        session.ask("unharmed")


def script_waiters(path: str, directory: str) -> None:
    """Threads that wait for the interpreter's lock at the fork are not waited for in the child.

    What the C library knows of those who wait is copied with the lock. None of them has asked the forking thread for it: a child
    that has to let go of it before mppool runs waits for ever, and nobody can help.
    """
    sys.setswitchinterval(1000.0)
    pool = PoolManager("t", linger=0.0).pool("p", SessionRecipe(path), max_size=2)
    with pool.checkout(timeout=10) as session:
        session.ask("x")
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            time.sleep(0)  # lets go of the lock, and waits for it

    threads = [threading.Thread(target=spin, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()

    def child() -> str:
        sys.setswitchinterval(0.005)
        with pool.checkout(timeout=30) as mine:
            mine.ask("the child")
        return "ok"

    for _ in range(5):
        assert NoticedCFork(child).result() == "ok"
    stop.set()
    for thread in threads:
        thread.join()


def script_hooks(path: str, directory: str) -> None:
    """Other libraries' hooks run in such a child, once."""
    pool = PoolManager("t", linger=0.0).pool("p", SessionRecipe(path), max_size=2)
    with pool.checkout(timeout=10):
        pass
    called: list[int] = []
    os.register_at_fork(after_in_child=lambda: called.append(os.getpid()))

    def alone() -> list[int]:
        for _ in range(2):
            with pool.checkout(timeout=10):
                pass
        return called

    child = CFork(alone)
    assert child.result() == [child.pid]
    child = Fork(alone)
    assert child.result() == [child.pid]


def script_release(path: str, directory: str) -> None:
    """A release in the child reaches nobody, whatever the recipe wants done at a release."""
    asked = Path(directory) / "asked"
    pool = PoolManager("t", linger=0.0).pool("p", Noting(path, asked), max_size=1)
    lease = pool.checkout(timeout=10)

    def child() -> str:
        lease.release()
        lease.discard()
        with pytest.raises(CheckoutTimeout):
            pool.checkout(timeout=0.3)
        return "ok"

    assert CFork(child).result() == "ok"
    assert not asked.exists()
    lease.resource.ask("unharmed")
    lease.release()
    with pool.checkout(timeout=20):
        pass


def script_speaking(path: str, directory: str) -> None:
    """Statistics, declarations and commands in the child are the child's own words."""
    manager = PoolManager("t", linger=0.0)
    pool = manager.pool("p", SessionRecipe(path), max_size=2)
    lease = pool.checkout(timeout=10)

    def child() -> tuple[int, int]:
        held = pool.stats()["in_use"]
        other = manager.pool("q", object, max_size=1)
        other.reset()
        with other.checkout(timeout=10):
            return held, len(manager.stats()["processes"])

    assert CFork(child).result() == (1, 2)
    lease.release()
    with pool.checkout(timeout=20):
        pass


def script_threads(path: str, directory: str) -> None:
    """Threads of the child that come all at once renew it once.

    The interpreter is told of this fork, only mppool is not. Where it is not told, a child that starts a thread before it
    has used the pool may hang: its copy of the interpreter's lock may wait for a thread of the parent.
    """
    pool = PoolManager("t", linger=0.0).pool("p", SessionRecipe(path), max_size=MAX_SIZE)
    leases = [pool.checkout(timeout=10) for _ in range(2)]
    parents = {lease.resource.number for lease in leases}
    for lease in leases:
        lease.release()

    def child() -> set[int]:
        numbers: list[int] = []
        all_hold = threading.Barrier(4, timeout=10)

        def use() -> None:
            with pool.checkout(timeout=10) as session:
                session.ask("x")
                numbers.append(session.number)
                all_hold.wait()

        forking.notice_fork = notice_fork
        assert not forking.own_mark()[0]  # nobody has noticed yet
        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return set(numbers)

    notice_fork = forking.notice_fork
    forking.notice_fork = lambda: None
    try:
        fork = Fork(child)
    finally:
        forking.notice_fork = notice_fork
    theirs = fork.result()
    assert len(theirs) == 4
    assert not theirs & parents


def script_generations(path: str, directory: str) -> None:
    """A child of C code forks in its turn, by either way."""
    pool = PoolManager("t", linger=0.0).pool("p", SessionRecipe(path), max_size=MAX_SIZE)

    def use(ways: list[type[Fork]]) -> set[int]:
        with pool.checkout(timeout=10) as session:
            session.ask("x")
            below = ways[0](use, ways[1:]).result() if ways else set()
            assert session.number not in below
            session.ask("unharmed")
            return {session.number, *below}

    assert len(use([CFork, Fork, CFork])) == 4


def script_in_process(path: str, directory: str) -> None:
    """A pool within the process notices as well."""
    pool = InProcessManager("c").pool("p", object, max_size=1)
    lease = pool.checkout(timeout=20)
    first = lease.resource

    def child() -> bool:
        with pool.checkout(timeout=20) as mine:
            return mine is not first

    assert CFork(child).result()
    lease.release()


def script_mark(path: str, directory: str) -> None:
    """Where no page can be had that is wiped, pids are compared."""

    def refused(*arguments: object, **keywords: object) -> None:
        raise OSError("no such advice")

    real, forking.mmap.mmap = forking.mmap.mmap, refused  # type: ignore[misc, assignment]
    mark = forking.new_mark()
    forking.mmap.mmap = real  # type: ignore[misc]
    for one in (mark, forking.new_mark()):
        assert one[0]
        assert not Fork(lambda one=one: bool(one[0])).result()
        assert not CFork(lambda one=one: bool(one[0])).result()


class Part:
    """A forkable that fails, or is interrupted, so many times."""

    def __init__(self, error: BaseException, times: int) -> None:
        self._error, self._left = error, times
        self.calls = 0

    def after_fork_in_child(self) -> None:
        self.calls += 1
        if self._left > 0:
            self._left -= 1
            raise self._error


def script_failing_parts(path: str, directory: str) -> None:
    """One part that fails skips no other, and is tried again."""
    for error in (KeyboardInterrupt(), SystemExit(3), MemoryError(), ValueError()):
        for way in (Fork, CFork):
            parts = [Part(error, 1), Part(ValueError(), 0)]
            pools = [InProcessManager(name).pool("p", object, max_size=1) for name in ("a", "b")]
            for part in parts:
                forking.renew_in_children(part)
            leases = [pool.checkout(timeout=20) for pool in pools]

            def child(pools: Any = pools, parts: Any = parts, error: Any = error) -> list[int]:
                for _ in range(2):
                    try:
                        forking.notice_fork()
                    except BaseException as raised:
                        assert type(raised) is type(error)  # noqa: PT017
                for pool in pools:
                    with pool.checkout(timeout=1):
                        pass
                return [part.calls for part in parts]

            assert way(child).result() == [2, 1], (error, way)
            for lease in leases:
                lease.release()
