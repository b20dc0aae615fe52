"""Forks in the middle of everything, and every way to start a process."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from mppool import ForkedLease, InProcessManager, Lease, OpenFailed, Pool, PoolManager
from tests.helpers import Fork, run_python, wait_until
from tests.processes.witness import Session, SessionRecipe, Witness

Forks = Callable[..., Fork]


def _use(pool: Pool[Session], times: int = 20) -> int:
    """Check out and ask; the number of the last session."""
    number = 0
    for _ in range(times):
        with pool.checkout(timeout=20) as session:
            session.ask("x")
            number = session.number
    return number


def _use_in_executor(pool: Pool[Session], _: int) -> int:
    return _use(pool, 5)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_every_start_method_share_the_pool(
    manager: PoolManager, witness: Witness, method: str
) -> None:
    pool = manager.pool("p", SessionRecipe(witness.path), max_size=2)
    _use(pool)
    context: Any = multiprocessing.get_context(method)
    children = [context.Process(target=_use, args=(pool,)) for _ in range(3)]
    for child in children:
        child.start()
    _use(pool)
    for child in children:
        child.join(90)  # what it imports may take its time
    assert [child.exitcode for child in children] == [0] * 3
    assert witness.figures()["peak"] <= 2


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_pool_executor_shares_the_pool(
    manager: PoolManager, witness: Witness, method: str
) -> None:
    pool = manager.pool("p", SessionRecipe(witness.path), max_size=2)
    _use(pool)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(3, mp_context=context) as executor:
        results = executor.map(_use_in_executor, [pool] * 6, range(6))
        processes = list(executor._processes.values())
        try:
            numbers = list(results)
        except BrokenProcessPool:
            for process in processes:
                process.join(5)
            pytest.fail(f"exit codes {[process.exitcode for process in processes]}")
    assert all(numbers)
    assert witness.figures()["peak"] <= 2


def test_nested_and_double_forks_share_the_pool(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=3)
    lease = pool.checkout(timeout=10)

    def child(depth: int) -> int:
        _use(pool, 5)
        if depth == 0:
            return 1
        inner = Fork(child, depth - 1)
        _use(pool, 5)
        return 1 + int(inner.result())

    assert fork(child, 3).result() == 4

    def daemon() -> int:
        pid = os.fork()
        if pid:
            return pid
        os.setsid()
        _use(pool, 5)
        os._exit(0)

    fork(daemon).result()
    lease.resource.ask("unharmed")
    lease.release()
    assert witness.figures()["peak"] <= 3


def test_a_fork_in_a_thread_shares_the_pool(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    results: list[int] = []

    def run() -> None:
        _use(pool)
        results.append(fork(_use, pool).result())

    thread = threading.Thread(target=run)
    thread.start()
    _use(pool)
    thread.join(30)
    assert len(results) == 1


def test_hazard_5_forks_while_threads_check_out_wait_open_and_release(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    """Locks are held, connections are in use, resources are between shelf and lease at the fork."""
    pool = manager.pool("p", witness.recipe(), max_size=3)
    ended = threading.Event()
    failures: list[BaseException] = []

    def load() -> None:
        count = 0
        while not ended.is_set():
            try:
                with pool.checkout(timeout=20) as session:
                    session.ask("x")
                count += 1
                if count % 5 == 0:
                    pool.checkout(timeout=20).discard()
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=load) for _ in range(5)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            assert all(child.result() for child in [fork(_use, pool, 5) for _ in range(3)])
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
    assert not failures
    assert witness.figures()["peak"] <= 3
    leases = [pool.checkout(timeout=10) for _ in range(3)]
    for lease in leases:
        lease.release()


def test_a_forked_child_holds_no_copy_of_a_connection_to_the_server(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    """Also none that another thread was using at the fork: its end would never be seen (hazard 6)."""
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=10)
    waiting = threading.Thread(target=lambda: _use(pool, 1))
    waiting.start()
    wait_until(lambda: manager.stats()["pools"]["p"]["waiting"] == 1, "a waiter")
    link = manager._link  # type: ignore[attr-defined]
    busy = link._connections.take(manager._member.inventory.session, time.monotonic() + 5)

    def sockets() -> list[str]:
        return [
            name
            for fd in os.listdir("/proc/self/fd")
            if (name := _target(fd)).startswith("socket:")
        ]

    names = {_target(str(c.sock.fileno())) for c in link._connections.all()}
    assert len(names) >= 2
    inherited = set(fork(sockets).result()) & names
    assert inherited == set()
    link._connections.idle.append(busy)
    lease.release()
    waiting.join(20)


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


def test_a_lease_of_the_parent_cannot_be_used_in_a_child_and_giving_it_back_there_does_nothing(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=3)
    leases = [pool.checkout(timeout=10) for _ in range(3)]

    def child() -> list[str]:
        seen = []
        for use in (lambda: leases[0].resource, lambda: leases[0].__enter__()):
            with pytest.raises(ForkedLease) as caught:
                use()
            seen.append(str(caught.value))
        leases[0].release()
        leases[0].release()
        leases[1].discard()
        leases[2].__exit__(None, None, None)
        leases.clear()
        gc.collect()
        return seen

    assert all("'p'" in text for text in fork(child).result())
    for lease in leases:
        lease.resource.ask("unharmed")
        lease.release()
    assert witness.figures()["opened"] == 3
    assert manager.stats()["pools"]["p"]["counters"]["closed"] == 0


class _Noisy(Session):
    """Says goodbye when it is finalized, as a database connection does: in a child it must not."""

    def __del__(self) -> None:
        try:
            self.sock.sendall(b"close\n")
        except OSError:
            pass  # closed already


class _NoisyRecipe(SessionRecipe):
    def open(self, opening: object) -> Session:
        return _Noisy(self.path)


@pytest.mark.parametrize("leave", ["exit", "use", "collect"])
def test_a_child_neither_closes_nor_finalizes_what_its_parent_holds(
    manager: PoolManager, witness: Witness, leave: str
) -> None:
    pool = manager.pool("p", _NoisyRecipe(witness.path), max_size=3)
    _use(pool)
    held = pool.checkout(timeout=10)
    local = threading.local()
    started, ended = threading.Event(), threading.Event()

    def keep_in_thread_local() -> None:
        local.lease = pool.checkout(
            timeout=10
        )  # hazard 5: finalized in the child before any fork hook
        started.set()
        ended.wait(30)
        local.lease.resource.ask("unharmed, in a thread")
        local.lease.release()

    thread = threading.Thread(target=keep_in_thread_local)
    thread.start()
    started.wait(10)
    code: Any = {
        "exit": lambda: None,
        "use": lambda: _use(pool),
        "collect": lambda: (gc.collect(), pool._local.member.collect_leaked()),
    }[leave]
    context = multiprocessing.get_context("fork")
    child = context.Process(target=code)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    held.resource.ask("unharmed")
    held.release()
    ended.set()
    thread.join(10)
    # The witness has seen no goodbye from anybody.
    assert witness.figures()["pids"].count(os.getpid()) == 2


_LEAVES = """
import os, sys
from mppool import PoolManager
from tests.processes.test_forks import _NoisyRecipe
pool = PoolManager("t", linger=0.0).pool("p", _NoisyRecipe(sys.argv[1]), max_size=2)
pool.checkout().release()
held = pool.checkout()
idle = pool.checkout()
session = idle.resource
idle.release()
if os.fork() == 0:
    sys.exit(0)  # the interpreter is finalized, and with it whatever the child can find
assert os.wait()[1] == 0
held.resource.ask("unharmed")
session.ask("unharmed")
print("unharmed")
held.release()
"""


def test_hazard_12_a_child_that_ends_like_any_program_leaves_its_parents_resources_alone(
    runtime_dir: Path, witness: Witness, python: Callable[..., Any]
) -> None:
    process = python(_LEAVES, witness.path)
    assert process.communicate(timeout=30)[0] == "unharmed\n"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="cured in CPython 3.14")
def test_hazard_5_a_naive_thread_local_session_is_finalized_in_the_child(
    witness: Witness, fork: Forks
) -> None:
    """The stand-in: without a process-wide table the parent's session would be ended (CPython <= 3.13)."""
    local = threading.local()
    started, ended = threading.Event(), threading.Event()

    def keep() -> None:
        local.session = _Noisy(witness.path)
        started.set()
        ended.wait(30)
        local.session.sock.close()

    thread = threading.Thread(target=keep)
    thread.start()
    started.wait(10)
    fork(gc.collect).result()
    held = witness.figures()["held"]
    ended.set()
    thread.join(10)
    assert held == 0


@pytest.mark.parametrize(
    ("in_caller", "told"), [(True, b"forked"), (False, b"")], ids=["in caller", "beside"]
)
def test_an_open_hook_that_forks_gives_the_child_nothing(
    runtime_dir: Path, witness: Witness, in_caller: bool, told: bytes
) -> None:
    """In an interpreter of its own: where the child ends with its last thread, C libraries tidy up, and some hang there."""
    done = run_python(
        f"from tests.processes import test_forks\n"
        f"print(test_forks.hook_that_forks({witness.path!r}, {in_caller}))",
        timeout=60,
    )
    assert done.stdout == f"{told}\n"


def hook_that_forks(path: str, in_caller: bool) -> bytes:
    """What the child of a hook is told by its checkout; b"": its thread ended first. The parent's lease is unharmed.

    Beside its caller the hook runs in a thread that is the only one of the child, and ends there.
    """
    children: list[int] = []

    def opener() -> Session:
        session = Session(path)
        if not children:
            reading, writing = os.pipe()
            pid = os.fork()
            children.append(pid)
            if pid == 0:
                inherited.append(writing)
            else:
                os.close(writing)
                pipes.append(reading)
        return session

    inherited: list[int] = []
    pipes: list[int] = []
    manager = PoolManager("t", linger=0.0)
    pool = manager.pool("p", opener, max_size=2, open_in_caller=in_caller)
    try:
        lease: Lease[Session] | None = pool.checkout(timeout=20)
        seen = b"a lease"
    except ForkedLease:
        lease, seen = None, b"forked"
    except OpenFailed:
        lease, seen = None, b"failed"
    if inherited:
        os.write(inherited[0], seen)
        os._exit(0)
    told = os.read(pipes[0], 20)
    os.close(pipes[0])
    os.waitpid(children[0], 0)
    assert lease is not None
    lease.resource.ask("unharmed")
    lease.release()
    return told


def test_a_signal_handler_that_forks_in_the_middle_of_anything_harms_nobody(
    manager: PoolManager, witness: Witness
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    _use(pool)
    children: list[int] = []

    def handler(number: int, frame: object) -> None:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                _use(pool, 2)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for number in range(12):
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0003 * number)
            for _ in range(200):
                _use(pool, 3)
                pool.checkout(timeout=20).discard()
                if len(children) > number:
                    break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(children)
    assert len(children) == 12
    assert witness.figures()["peak"] <= 2


def test_no_child_is_forked_while_a_thread_that_has_opened_is_ending(
    manager: PoolManager, witness: Witness, fork: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libraries do at the end of a thread they do under locks, which a child would find locked for ever."""
    monkeypatch.setattr("mppool.process.fork._LONGEST_END_S", 20.0)
    libc = ctypes.CDLL(None)
    key = ctypes.c_uint()
    # As OpenSSL does; this one sleeps.
    assert libc.pthread_key_create(ctypes.byref(key), libc.usleep) == 0
    threads: list[int] = []

    def opener() -> Session:
        libc.pthread_setspecific(key, ctypes.c_void_p(500_000))
        threads.append(threading.get_native_id())
        return Session(witness.path)

    pool = manager.pool("p", opener, max_size=1)
    with pool.checkout(timeout=10) as session:
        wait_until(
            lambda: not any(thread.name.endswith("-open") for thread in threading.enumerate()),
            "the thread to have ended, for the interpreter",
        )
        child = fork(lambda: Path(f"/proc/{os.getppid()}/task/{threads[0]}").exists())
        assert not Path(f"/proc/self/task/{threads[0]}").exists()
        assert not child.result()
        session.ask("unharmed")


def test_a_fork_in_the_middle_of_an_import_leaves_no_half_module(
    fork: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread imports the server's client side for the first checkout, while this one forks."""
    import mppool

    (tmp_path / "slow.py").write_text("import time\ntime.sleep(0.5)\nwhole = True\n")
    monkeypatch.setattr(mppool, "__path__", [*mppool.__path__, str(tmp_path)])

    def child() -> bool:
        from mppool import slow

        return bool(slow.whole)

    thread = threading.Thread(target=lambda: __import__("mppool.slow"))
    thread.start()
    wait_until(lambda: "mppool.slow" in sys.modules, "the import")
    result = fork(child).result(timeout=10)
    thread.join()
    sys.modules.pop("mppool.slow")
    assert result


def test_a_child_of_an_in_process_manager_starts_with_empty_pools(fork: Forks) -> None:
    pool = InProcessManager().pool("p", lambda: [os.getpid()], max_size=1)
    lease = pool.checkout()

    def child() -> bool:
        with pool.checkout(timeout=20) as resource:
            return bool(resource[0] == os.getpid())

    assert fork(child).result()
    assert lease.resource == [os.getpid()]
    lease.release()


def test_hazard_6_a_child_that_outlives_its_parent_keeps_nothing_of_it(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    """Hazard 6: the death of a worker is seen although a grandchild holds copies of all its sockets."""
    pool = manager.pool("p", witness.recipe(), max_size=1)
    reading, writing = os.pipe()

    def parent() -> None:
        with pool.checkout(timeout=10) as session:
            session.ask("mine")
            grandchild = os.fork()
            if grandchild == 0:
                signal.pause()
                os._exit(0)
            os.write(writing, str(grandchild).encode())
            signal.pause()

    child = fork(parent)
    grandchild = int(os.read(reading, 20))
    try:
        os.kill(child.pid, signal.SIGKILL)
        with pool.checkout(timeout=20) as session:
            session.ask("ours")
            assert witness.figures()["pids"] == [os.getpid()]
    finally:
        os.kill(grandchild, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_hazard_6_a_naive_end_of_file_does_not_show_the_death_of_a_process_with_children(
    fork: Forks,
) -> None:
    """The stand-in: a server that watches the connection instead of the process waits for the grandchild."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()

    def parent() -> None:
        ours.close()
        grandchild = os.fork()
        if grandchild == 0:
            signal.pause()
        os.write(writing, str(grandchild).encode())
        signal.pause()

    child = fork(parent)
    theirs.close()
    grandchild = int(os.read(reading, 20))
    child.kill()
    ours.settimeout(0.2)
    with pytest.raises(TimeoutError):
        ours.recv(1)
    os.kill(grandchild, signal.SIGKILL)
    assert ours.recv(1) == b""
    ours.close()
    os.close(reading)
    os.close(writing)
