"""Children that were not told so, and what is finalized in a child before it could be told."""

from __future__ import annotations

import contextvars
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool import ForkedLease, LeaseReleased, PoolManager
from mppool.process import fork as forking
from mppool.process.unhooked import finish_fork
from tests.helpers import Fork, run_python, wait_until
from tests.processes import unannounced
from tests.processes.witness import Witness

Forks = Callable[..., Fork]

_BIRTHS = 30


# --- forks that nobody announces -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", [name for name in vars(unannounced) if name.startswith("script_")]
)
def test_children_of_c_code(
    runtime_dir: Path, witness: Witness, script: str, tmp_path: Path
) -> None:
    """In an interpreter of their own: C code that forks copies the state of all threads that there are."""
    run_python(
        f"from tests.processes import unannounced\n"
        f"unannounced.{script}({witness.path!r}, {str(tmp_path)!r})",
        timeout=60,
    )
    assert witness.figures()["peak"] <= unannounced.MAX_SIZE


def test_the_interpreter_is_not_told_of_a_fork_where_other_threads_run() -> None:
    """It would know of them no longer."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert not finish_fork()
    finally:
        done.set()
        other.join()


def test_a_fork_beside_that_of_another_thread_is_not_taken_for_one_of_c_code(fork: Forks) -> None:
    """Else its child would run all hooks a second time."""
    called: list[int] = []
    os.register_at_fork(after_in_child=lambda: called.append(os.getpid()))
    forking._hooked.append(None)  # another thread has begun to fork
    try:
        first = fork(lambda: list(called))
        assert first.result() == [first.pid]
        assert len(forking._hooked) == 1
        second = fork(lambda: list(called))
        assert second.result() == [second.pid]
    finally:
        forking._hooked.pop()
    assert not forking._hooked


# --- what is finalized before any hook -------------------------------------------------------------------


@pytest.mark.parametrize("place", ["thread-local", "context variable"])
@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.parametrize("way", ["with", "release", "discard", "collected", "twice"])
def test_generators_that_hold_leases_in_other_threads_do_nothing_in_a_child(
    manager: PoolManager,
    witness: Witness,
    fork: Forks,
    tmp_path: Path,
    place: str,
    contended: bool,
    way: str,
) -> None:
    """CPython finalizes the contents of other threads' locals in a child, before the hooks."""
    asked = tmp_path / "asked"
    pool = manager.pool("p", unannounced.Noting(witness.path, asked), max_size=1)
    local, variable = threading.local(), contextvars.ContextVar("held", default=None)
    ready, go = threading.Event(), threading.Event()

    def request() -> Iterator[Any]:
        if way == "with":
            with pool.checkout(timeout=20) as session:
                yield session
            return
        lease = pool.checkout(timeout=20)
        if way == "twice":
            lease.release()
        try:
            yield lease.resource if way != "twice" else None
        finally:
            if way in ("release", "twice"):
                lease.release()
            elif way == "discard":
                lease.discard()

    def worker() -> None:
        held = request()
        if place == "thread-local":
            local.held = held
        else:
            variable.set(held)  # type: ignore[arg-type]
        del held
        next(local.held if place == "thread-local" else variable.get())  # type: ignore[call-overload]
        ready.set()
        go.wait()

    thread = threading.Thread(target=worker)
    thread.start()
    assert ready.wait(10)
    before = asked.read_text() if asked.exists() else ""
    waiting = []
    if contended and way != "twice":
        waiting = [threading.Thread(target=lambda: pool.checkout(timeout=20).release())]
        waiting[0].start()
        wait_until(lambda: pool.stats()["waiting"] == 1, "somebody waits")
    try:
        # In the middle of whatever this process holds: its locks are nobody's in the child.
        with pool._local.inventory.lock:
            child = fork(lambda: "alive")
        assert child.result() == "alive"
        assert (asked.read_text() if asked.exists() else "") == before
    finally:
        go.set()
        thread.join(10)
        del thread
        local.__dict__.clear()
        for one in waiting:
            one.join(20)
    with pool.checkout(timeout=10) as session:
        session.ask("unharmed")
    assert witness.figures()["peak"] == 1


def test_a_release_in_a_child_leaves_the_lease_a_forked_one(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    lease, before = pool.checkout(timeout=10), pool.checkout(timeout=10)
    before.release()

    def child() -> str:
        for _ in range(2):
            lease.release()
            lease.discard()
            lease.__exit__(None, None, None)
            lease.__exit__(ValueError, ValueError(), None)
            with pytest.raises(ForkedLease):
                lease.resource  # noqa: B018
        with pytest.raises(LeaseReleased):
            before.resource  # noqa: B018
        return "ok"

    assert fork(child).result() == "ok"
    lease.resource.ask("unharmed")
    lease.release()


# --- births that are interrupted -------------------------------------------------------------------------


def test_a_ctrl_c_at_its_birth_leaves_no_child_with_what_its_parent_holds(
    manager: PoolManager, witness: Witness
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    with pool.checkout(timeout=10) as session:
        number = session.number
    choice = random.Random(3)
    for _ in range(_BIRTHS):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                try:
                    time.sleep(0.01)
                except KeyboardInterrupt:
                    os._exit(0)
                with pool.checkout(timeout=10) as mine:
                    os.write(writing, b"theirs" if mine.number == number else b"own")
            finally:
                os._exit(0)
        os.close(writing)
        for _ in range(choice.randrange(3000)):
            pass
        os.kill(pid, signal.SIGINT)
        assert os.read(reading, 10) in (b"own", b"")
        os.waitpid(pid, 0)
        os.close(reading)
    with pool.checkout(timeout=10) as session:
        assert session.number == number
        session.ask("unharmed")
    assert witness.figures()["peak"] <= 2


# --- forks while something is imported, or a decoder made ------------------------------------------------


def test_a_fork_waits_for_what_is_half_imported(tmp_path: Path) -> None:
    began, go = threading.Event(), threading.Event()

    def step() -> None:
        began.set()
        go.wait(10)

    thread = threading.Thread(target=forking.prepare, args=(step,))
    thread.start()
    assert began.wait(10)
    timer = threading.Timer(0.1, go.set)
    timer.start()
    child = Fork(lambda: (go.is_set(), forking.prepare(lambda: None)))
    assert child.result() == (True, None)
    thread.join()
    timer.join()


_FIRST_CHECKOUTS = """
import os, threading, sys, tempfile
from mppool import PoolManager
pool = PoolManager("t", linger=0.0).pool("p", object, max_size=50)
thread = threading.Thread(target=lambda: pool.checkout(timeout=20).release())
thread.start()
for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 12):
    pid = os.fork()
    if pid == 0:
        with pool.checkout(timeout=20):
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
thread.join()
"""


def test_children_of_a_first_checkout_check_out(runtime_dir: Path) -> None:
    for _ in range(3):
        run_python(_FIRST_CHECKOUTS, timeout=60)


def test_the_first_checkout_of_a_child_imports_nothing_that_its_parents_had_begun() -> None:
    """What a process imports at its first checkout it imports as a whole, before anything else is done."""
    code = """
import sys
from mppool import PoolManager
from mppool.process import fork
manager = PoolManager("t", linger=0.0)
pool = manager.pool("p", object, max_size=2)
manager._link._connections.prepare()
before = set(sys.modules)
with pool.checkout(timeout=20): pass
late = {name for name in set(sys.modules) - before}
assert not late, late
manager.shutdown()
"""
    run_python(code)
