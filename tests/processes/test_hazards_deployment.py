"""Hazards 9, 10, 11, 13, 16 and 17: servers as children, gunicorn, gevent, starters, timings.

Longer tests of the same, under the real web servers, are named in test_hazards.py. Each stand-in here is
what one would write first; it shows that what is asserted of mppool goes wrong elsewhere.

17 has no stand-in: two modes of a latency show by chance, and a test must not wait for chance.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.measuring import pinned
from mppool import PoolManager
from mppool.integrations import gunicorn
from tests.helpers import Fork, is_alive, is_server, processes_using, run_python, wait_until
from tests.processes.witness import Witness

Forks = Callable[..., Fork]

_QUIET = "import warnings; warnings.simplefilter('ignore')\n"


def _says(code: str, **environment: str) -> list[str]:
    return run_python(_QUIET + code, environment=environment).stdout.split()


# --- 9: a server that is a child -----------------------------------------------------------------------

_OURS = """
from mppool import PoolManager
manager = PoolManager("t", linger=1.0)
pool = manager.pool("p", object, max_size=1)
with pool.checkout(timeout=20):
    server = manager.server_pid
"""

_A_WORKER_EXITS = """
import os, sys, time, multiprocessing
context = multiprocessing.get_context("fork")
if os.environ["KIND"] == "naive":
    child = context.Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    server = child.pid
else:
    exec(os.environ["OURS"])
worker = os.fork()
if worker == 0:
    sys.exit()  # as a worker that was told to stop: atexit handlers run
os.waitpid(worker, 0)
try:
    reaped, status = os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    reaped = 0
print("terminated" if reaped == server and os.WTERMSIG(status) == 15 else "lives")
"""


@pytest.mark.parametrize(("kind", "fate"), [("naive", "terminated"), ("ours", "lives")])
def test_hazard_9_the_server_outlives_the_first_worker_that_exits(
    kind: str, fate: str, runtime_dir: Path
) -> None:
    """The stand-in: a daemon Process."""
    assert _says(_A_WORKER_EXITS, KIND=kind, OURS=_OURS) == [fate]


_SOMEBODY_REAPS = """
import multiprocessing, os, signal
from multiprocessing.managers import BaseManager
if os.environ["KIND"] == "naive":
    manager = BaseManager(ctx=multiprocessing.get_context("fork"))
    manager.start()
    server = manager._process.pid
    looks_alive = manager._process.is_alive
else:
    exec(os.environ["OURS"])
    looks_alive = lambda: manager.server_pid == server  # a successor may be there already
os.kill(server, signal.SIGKILL)
try:
    os.waitpid(-1, 0)  # as gunicorn's master
except ChildProcessError:
    pass
while os.path.exists(f"/proc/{server}") and open(f"/proc/{server}/stat").read().split()[2] != "Z":
    pass
print(looks_alive())
os._exit(0)
"""


@pytest.mark.parametrize(("kind", "looks_alive"), [("naive", "True"), ("ours", "False")])
def test_hazard_9_who_reaps_the_starters_children_takes_nothing_from_us(
    kind: str, looks_alive: str, runtime_dir: Path
) -> None:
    """The stand-in: it takes a dead server for alive, and would signal the next owner of its pid."""
    assert _says(_SOMEBODY_REAPS, KIND=kind, OURS=_OURS) == [looks_alive]


_THE_MASTER_IS_KILLED = """
import multiprocessing, os, signal
from multiprocessing.managers import BaseManager
naive = BaseManager(ctx=multiprocessing.get_context("fork"))
naive.start()
exec(os.environ["OURS"])
print(naive._process.pid, server, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_hazard_9_the_server_of_a_killed_master_leaves(
    runtime_dir: Path, python: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in, a manager of the standard library beside ours, stays for ever."""
    monkeypatch.setenv("OURS", _OURS)
    master = python(_THE_MASTER_IS_KILLED)
    naive, ours = map(int, master.stdout.readline().split())
    try:
        assert master.wait(20) == -signal.SIGKILL
        wait_until(lambda: not is_alive(ours), "the server to linger out")
        assert is_alive(naive)
    finally:
        os.kill(naive, signal.SIGKILL)


# --- 10: shared memory and semaphores --------------------------------------------------------------------

_VISITED = """
import subprocess, sys, time
from multiprocessing import shared_memory
books = shared_memory.SharedMemory(create=True, size=64)
look = "from multiprocessing.shared_memory import SharedMemory; SharedMemory(name=%r)" % books.name
subprocess.run([sys.executable, "-c", look], stderr=subprocess.DEVNULL, check=True)
try:
    while True:
        shared_memory.SharedMemory(name=books.name).close()
        time.sleep(0.005)
except FileNotFoundError:
    print("gone")
    books.close()
"""


def test_hazard_10_naive_shared_books_are_unlinked_by_a_visitor() -> None:
    """The stand-in: books in shared memory vanish because an unrelated process has looked at them."""
    assert _says(_VISITED) == ["gone"]


def test_hazard_10_naive_semaphore_loses_the_permit_of_a_killed_holder() -> None:
    """The stand-in for the next test."""
    assert _says("""
import multiprocessing, os, signal
context = multiprocessing.get_context("fork")
permits, taken = context.Semaphore(1), context.Pipe()
def hold():
    permits.acquire()
    taken[1].send("taken")
    signal.pause()
child = context.Process(target=hold)
child.start()
taken[0].recv()
os.kill(child.pid, signal.SIGKILL)
child.join()
print(permits.acquire(timeout=0.05))
""") == ["False"]


def test_hazard_10_killed_holders_lose_no_capacity(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)

    def hold() -> None:
        with pool.checkout(timeout=20) as session:
            session.ask("mine")
            signal.pause()

    for _ in range(3):
        holders = [fork(hold), fork(hold)]
        wait_until(lambda: witness.figures()["held"] == 2, "both hold")
        for holder in holders:
            holder.kill()
    with pool.checkout(timeout=20) as one, pool.checkout(timeout=20) as other:
        one.ask("mine")
        other.ask("mine")
    assert witness.figures()["peak"] == 2


def test_hazard_10_neither_shared_memory_nor_semaphores_are_used(runtime_dir: Path) -> None:
    """Nor the resource tracker that cleans up after them, which would be one more process."""
    assert _says(
        _OURS + "from multiprocessing import resource_tracker\n"
        "print(resource_tracker._resource_tracker._pid, '/dev/shm' in open('/proc/self/maps').read())"
    ) == ["None", "False"]


# --- 11: worker_exit in the master ---------------------------------------------------------------------------


def _naive_worker_exit(server: Any, worker: Any) -> None:
    for member in gunicorn.managers.members():
        member.close_idle()


@pytest.mark.parametrize(
    ("hook", "left"), [(gunicorn.worker_exit, 1), (_naive_worker_exit, 0)], ids=["ours", "naive"]
)
def test_hazard_11_worker_exit_in_the_master_leaves_the_masters_resources_alone(
    hook: Callable[[Any, Any], None], left: int, manager: PoolManager, witness: Witness
) -> None:
    """The stand-in does not look at the pid."""
    with manager.pool("p", witness.recipe(), max_size=1).checkout(timeout=10) as session:
        session.ask("the master's")
    vanished = SimpleNamespace(pid=os.getpid() + 1)  # the worker, as gunicorn's master describes it
    hook(None, vanished)
    wait_until(lambda: witness.figures()["held"] == left, "what is left")
    gunicorn.worker_exit(None, SimpleNamespace(pid=os.getpid()))
    wait_until(lambda: witness.figures()["held"] == 0, "the farewell of a worker")


# --- 13: gevent ---------------------------------------------------------------------------------------------

_PATCHED = "from gevent import monkey\nmonkey.patch_all()\nimport os\n"


def test_hazard_13_naive_multiprocessing_connections_break_when_patched() -> None:
    """The stand-in: a manager of the standard library under gevent."""
    pytest.importorskip("gevent")
    assert _says(
        _PATCHED
        + """
import multiprocessing
manager = multiprocessing.get_context("fork").Manager()
server = manager._process.pid
try:
    manager.list()
    print("works")
except OSError:  # BlockingIOError, or a message of which a part has come
    print("breaks")
os.kill(server, 9)
os._exit(0)
"""
    ) == ["breaks"]


def test_hazard_13_a_pool_works_when_patched(runtime_dir: Path) -> None:
    pytest.importorskip("gevent")
    assert _says(
        _PATCHED
        + _OURS
        + """
import gevent
def use():
    with pool.checkout(timeout=20):
        gevent.sleep(0)
    return 1
print(sum(one.value for one in gevent.joinall([gevent.spawn(use) for _ in range(5)])))
"""
    ) == ["5"]


# --- 16: starters and idle exits --------------------------------------------------------------------------------


def _start_naively(address: Path, everybody_looked: Callable[[], None]) -> None:
    if not address.exists():
        everybody_looked()
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(address.with_suffix(f".{os.getpid()}")))
        server.listen()
        address.write_text(str(os.getpid()))
        signal.pause()


def test_hazard_16_naive_starters_start_a_server_each(tmp_path: Path, fork: Forks) -> None:
    """The stand-in: look, then start, without a lock. All eight look before the first has started."""
    looked = tmp_path / "looked"

    def everybody_looked() -> None:
        with looked.open("ab", buffering=0) as file:
            file.write(b"x")
        wait_until(lambda: looked.stat().st_size == 8, "all to have looked")

    directory = Path("/tmp") / f"mppn-{os.getpid()}"  # short, for sockets in it
    directory.mkdir()
    try:
        starters = [fork(_start_naively, directory / "a", everybody_looked) for _ in range(8)]
        wait_until(lambda: len(list(directory.glob("a.*"))) == 8, "all to have started")
        servers = {path.suffix for path in directory.glob("a.*")}
        assert servers == {f".{starter.pid}" for starter in starters}  # where one was meant
        for starter in starters:
            starter.kill()
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def _opened(manager: PoolManager) -> int:
    return int(manager.stats()["pools"]["p"]["counters"]["opened"])


def test_hazard_16_eight_starters_agree_on_one_server(
    manager: PoolManager, runtime_dir: Path, fork: Forks
) -> None:
    pool = manager.pool("p", object, max_size=8)
    at = time.monotonic() + 0.2  # all at once, as far as that can be had

    def start() -> int | None:
        while time.monotonic() < at:
            pass
        with pool.checkout(timeout=20):
            pid = manager.server_pid
            wait_until(lambda: _opened(manager) == 8, "all eight to be there")
            return pid

    pids = {starter.result() for starter in [fork(start) for _ in range(8)]}
    assert len(pids) == 1
    named = [pid for pid, line in processes_using(runtime_dir).items() if is_server(line)]
    assert set(named) <= pids  # it may have left


def test_hazard_16_a_naive_connect_to_a_server_that_leaves_succeeds_and_is_then_reset(
    runtime_dir: Path,
) -> None:
    """The stand-in: one that takes a connect for an answer is told of the end only later."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(runtime_dir / "leaves"))
    listener.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(runtime_dir / "leaves"))
        listener.close()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.sendall(b"question")


def test_hazard_16_checkouts_at_the_very_moment_of_an_idle_exit_succeed(
    manager: PoolManager, runtime_dir: Path, fork: Forks
) -> None:
    """The server leaves as soon as nobody is connected, and always somebody is just about to connect."""
    pool = manager.pool("p", object, max_size=1)

    def use() -> int | None:
        with pool.checkout(timeout=20):
            return manager.server_pid

    assert all(fork(use).result() for _ in range(8))


# --- 17: timings on two cores ---------------------------------------------------------------------------------


def test_hazard_17_what_compares_latencies_stays_on_one_cpu(fork: Forks) -> None:
    before = os.sched_getaffinity(0)
    with pinned() as chosen:
        assert len(chosen) == 1
        assert fork(lambda: os.sched_getaffinity(0)).result() == chosen
        said = run_python("import os; print(*os.sched_getaffinity(0))")
        assert said.stdout.split() == [str(cpu) for cpu in chosen]
    assert os.sched_getaffinity(0) == before
