"""The hazards of the design's list, 1 to 18: where each is tested, and those that have no better place.

Each test here has a naive stand-in beside it, which shows that what is asserted does go wrong elsewhere.

 1  a plain os.fork: test_must_show.py (with a stand-in), test_forks.py
 2  after-fork machinery that runs twice: here
 3  an interrupt between question and answer: test_interrupts.py, test_identity_interrupts.py; a stand-in here
 4  identity by `id()` or by a number that is given again: here
 5  locks and thread-locals at a fork: test_forks.py (with a stand-in)
 6  inherited sockets: test_forks.py (with a stand-in), tests/server/test_server.py
 7  the end of a connection is not a death: tests/server/test_server.py, test_recovery.py; a stand-in here
 8  grants to the dead, recycled pids: here; tests/server/test_liveness.py, test_launch.py (pid namespaces)
 9  a server that is somebody's child: test_hazards_deployment.py (with stand-ins),
    tests/server/test_launch.py, tests/integrations/test_gunicorn.py
10  shared_memory and Semaphore: test_hazards_deployment.py (with stand-ins)
11  worker_exit in the master: test_hazards_deployment.py (with a stand-in), tests/integrations/test_gunicorn.py
12  atexit in children, forkserver by default: test_forks.py (every start method); a stand-in here
13  gevent: test_hazards_deployment.py (with a stand-in), tests/integrations/test_gunicorn_gevent.py
14  a long TMPDIR: tests/server/test_runtime.py (with a stand-in)
15  finalizers at any instruction: here; tests/azure/test_blob_ends.py
16  one server per master, starters and idle exits that race: test_hazards_deployment.py (with stand-ins),
    tests/server/test_launch.py, test_server.py, tests/integrations/test_gunicorn.py
17  two-core timings: test_hazards_deployment.py; benchmarks/measuring.py pins
18  reloaders: tests/integrations/test_reloaders.py (with a stand-in), test_reloaders_examples.py
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mppool import Pool, PoolManager
from mppool.core.decisions import Grant, Refuse
from mppool.core.events import Closed
from mppool.ids import GrantNumber, ProcessId, birth_of, own_process
from mppool.process.fork import renew_in_children
from mppool.rendezvous.paths import manager_paths
from mppool.server.members import Members
from mppool.wire.messages import Rejected
from tests.helpers import Fork, is_alive, run_python, wait_until
from tests.processes.witness import Session, Witness
from tests.server.clients import Background, Client, Member, close_all

Forks = Callable[..., Fork]


def _pool_stats(manager: PoolManager) -> dict[str, Any]:
    figures: dict[str, Any] = manager.stats()["pools"]["p"]
    return figures


# --- 2: after-fork machinery that runs twice ----------------------------------------------------------


class _Counted:
    """Counts how often it was told of a fork."""

    def __init__(self) -> None:
        self.times = 0

    def after_fork_in_child(self) -> None:
        self.times += 1


def test_hazard_2_the_fork_hook_runs_once_also_in_children_of_multiprocessing(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    counted = _Counted()
    renew_in_children(counted)
    reading, writing = multiprocessing.Pipe(duplex=False)

    def use() -> tuple[int, int]:
        """How often the hook ran, and how often the server has this process in its books."""
        with pool.checkout(timeout=20) as session:
            session.ask("mine")
            pids = [process["pid"] for process in manager.stats()["processes"]]
            return counted.times, pids.count(os.getpid())

    child = multiprocessing.get_context("fork").Process(target=lambda: writing.send(use()))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert reading.recv() == (1, 1)
    assert fork(use).result() == (1, 1)
    assert use() == (0, 1)
    wait_until(lambda: _pool_stats(manager)["size"] == 1, "only what we have")
    reading.close()
    writing.close()


_REFERENCES = """
import multiprocessing, os
from multiprocessing import util
context = multiprocessing.get_context("fork")
manager = context.Manager()
shared = manager.list()
if os.environ["CURE"] == "naive":
    os.register_at_fork(after_in_child=util._run_after_forkers)
ready, go = context.Pipe(), context.Pipe()
def child():
    ready[1].send("ready")
    go[0].recv()
process = context.Process(target=child)
process.start()
ready[0].recv()
print(*(word for word in manager._debug_info().split() if word.startswith("refcount=")))
go[1].send("go")
process.join()
manager.shutdown()
"""


@pytest.mark.parametrize(("cure", "references"), [("none", 2), ("naive", 3)])
def test_hazard_2_a_naive_hook_counts_a_childs_references_twice(cure: str, references: int) -> None:
    """The stand-in: parent and child have one reference each."""
    said = run_python(
        "import warnings; warnings.simplefilter('ignore')\n" + _REFERENCES,
        environment={"CURE": cure},
    )
    assert said.stdout.split() == [f"refcount={references}"]


# --- 3, 7, 12: stand-ins for what is tested elsewhere -----------------------------------------------------


def test_hazard_3_a_naive_exchange_leaves_its_reply_to_the_next() -> None:
    """The stand-in: the connection stays in use after an interrupt between question and answer."""
    ours, servers = socket.socketpair()

    def exchange(question: bytes, *, interrupted: bool = False) -> bytes:
        ours.send(question)
        servers.send(b"answer to " + servers.recv(100))
        if interrupted:
            raise KeyboardInterrupt
        return ours.recv(len(b"answer to ") + len(question))

    with ours, servers:
        with pytest.raises(KeyboardInterrupt):
            exchange(b"alice", interrupted=True)
        assert exchange(b"bobby") == b"answer to alice"


def test_hazard_7_naive_books_that_free_at_the_end_of_a_connection_lend_twice() -> None:
    """The stand-in: a process closes its connection, to open another, and goes on using what it was lent."""
    free, lent = ["the only one"], {}
    ours, servers = socket.socketpair()
    lent[servers] = mine = free.pop()
    ours.close()
    with servers:
        if servers.recv(1) == b"":
            free.append(lent.pop(servers))
    assert free == [mine]


_ATEXIT = """
import atexit, os, socket, sys
session, server = socket.socketpair()
atexit.register(session.send, b"goodbye")
if os.fork() == 0:
    sys.exit()
os.wait()
print(server.recv(100).decode(), flush=True)
os._exit(0)
"""


def test_hazard_12_a_naive_exit_handler_ends_the_parents_session_in_a_child() -> None:
    """The stand-in: a child that ends like any program runs what its parent registered."""
    said = run_python(_ATEXIT)
    assert said.stdout.split() == ["goodbye"]


# --- 4: identity ----------------------------------------------------------------------------------------


def test_hazard_4_a_stale_lease_of_an_old_server_touches_nothing_of_the_new_one(
    manager: PoolManager, witness: Witness
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    stale = pool.checkout(timeout=10)
    stale.discard()
    pid = manager.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the server's death")
    with pool.checkout(timeout=20) as session:
        assert manager.server_pid != pid
        stale.release()
        stale.discard()
        del stale
        gc.collect()
        session.ask("unharmed")
        figures = _pool_stats(manager)
        assert (figures["size"], figures["in_use"]) == (1, 1)
        assert witness.figures()["held"] == 1


@pytest.mark.parametrize("naive", [False, True])
def test_hazard_4_a_stale_number_is_none_of_the_new_servers(
    naive: bool, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in: a server that counts from 1, as each before it has. It gives the slot away twice."""
    if naive:
        monkeypatch.setattr(
            "mppool.ids.grant_number", lambda epoch, sequence: GrantNumber(sequence)
        )
    paths = manager_paths("t", runtime_dir)
    try:
        with Background(paths), Member(paths, max_size=1) as member:
            old = member.checkout()
            assert isinstance(old, Grant)
        with Background(paths), Member(paths, max_size=1) as member:
            new = member.checkout()
            assert isinstance(new, Grant)
            assert (new.number == old.number) is naive
            member.errand.send(Closed(old.number, "discarded"))
            # Whatever came before it on the errand channel is taken in before a call is answered.
            assert isinstance(member.checkout(timeout=0), Grant if naive else Refuse)
    finally:
        close_all()


def test_hazard_4_a_naive_id_soon_names_another_object() -> None:
    """The stand-in: one that remembers an address finds another server there."""

    class Resource:
        pass

    def lend() -> tuple[int, Resource]:
        resource = Resource()
        return id(resource), resource

    table: dict[int, Resource] = {}
    for _ in range(10):
        lend()  # without these nobody gets the first address again on CPython 3.13
    remembered, first = lend()
    del first
    for _ in range(100):
        address, resource = lend()
        table[address] = resource
        if address == remembered:
            break
    assert remembered in table


# --- 8: the dead ----------------------------------------------------------------------------------------


def test_hazard_8_a_waiter_that_was_killed_is_passed_by(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    """Also when the server learns of the death and of the free slot at the same time."""
    pool = manager.pool("p", witness.recipe(), max_size=1)

    def use() -> int:
        with pool.checkout(timeout=20) as session:
            session.ask("mine")
            return session.number

    for server_sleeps in (False, True):
        lease = pool.checkout(timeout=10)
        doomed = fork(use)
        wait_until(lambda: _pool_stats(manager)["waiting"] == 1, "the first in the line")
        next_one = fork(use)
        wait_until(lambda: _pool_stats(manager)["waiting"] == 2, "the second in the line")
        server = manager.server_pid
        assert server is not None
        if server_sleeps:
            os.kill(server, signal.SIGSTOP)
        try:
            doomed.kill()
            lease.release()
        finally:
            os.kill(server, signal.SIGCONT)
        assert next_one.result()
        use()
    figures = _pool_stats(manager)
    assert (figures["size"], figures["waiting"]) == (1, 0)
    assert witness.figures()["peak"] == 1


_GRANTS_TO_THE_DEAD = """
import multiprocessing, os, signal, threading, time
from multiprocessing.managers import BaseManager
class Slots:
    def __init__(self):
        self.free, self.asked, self.taken = threading.Semaphore(0), 0, 0
    def take(self, seconds):
        self.asked += 1
        taken = self.free.acquire(timeout=seconds)
        self.taken += taken
        return taken
    def give_back(self):
        self.free.release()
    def counts(self):
        return self.asked, self.taken
class Naive(BaseManager):
    pass
Naive.register("Slots", Slots)
context = multiprocessing.get_context("fork")
manager = Naive(ctx=context)
manager.start()
slots = manager.Slots()
child = context.Process(target=slots.take, args=(20,))
child.start()
while slots.counts() != (1, 0):
    time.sleep(0.005)
os.kill(child.pid, signal.SIGKILL)
child.join()
slots.give_back()
while slots.counts() != (1, 1):
    time.sleep(0.005)
print(slots.take(0.05))
manager.shutdown()
"""


def test_hazard_8_a_naive_server_with_a_thread_for_each_waiter_grants_to_the_dead() -> None:
    """The stand-in: the only slot has gone to the dead, for ever."""
    said = run_python("import warnings; warnings.simplefilter('ignore')\n" + _GRANTS_TO_THE_DEAD)
    assert said.stdout.split() == ["False"]


def test_hazard_8_whoever_got_a_dead_ones_pid_is_not_taken_for_him(
    runtime_dir: Path, tmp_path: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as heir:
        birth = birth_of(heir.pid)
        assert birth is not None
        dead = ProcessId(heir.pid, birth - 1)
        os.kill(dead.pid, 0)  # the naive look: it lives
        members = Members(tmp_path, "this boot")
        members.add(dead)
        assert members.living() == set()
        members.add(ProcessId(heir.pid, birth))
        assert members.living() == {ProcessId(heir.pid, birth)}
        heir.communicate(b"\n")
    paths = manager_paths("t", runtime_dir)
    try:
        with Background(paths):
            own = own_process()
            answer = Client(paths).hello("errand", process=ProcessId(own.pid, own.birth - 1))
            assert isinstance(answer, Rejected)
    finally:
        close_all()


# --- 15: finalizers -------------------------------------------------------------------------------------


def _collects(garbage: list[Any], locks: list[Any], patience: float) -> bool:
    """Whether a thread can collect the garbage while another one holds the locks."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.acquire()
        held.set()
        over.wait(30)
        for lock in locks:
            lock.release()

    holder = threading.Thread(target=hold)
    collector = threading.Thread(target=garbage.clear)
    holder.start()
    assert held.wait(10)
    collector.start()
    collector.join(patience)
    done = not collector.is_alive()
    over.set()
    holder.join(10)
    collector.join(10)
    return done


def _locks(pool: Pool[Session]) -> list[Any]:
    """Every lock that a call takes in this process."""
    member: Any = pool._local.member
    link = member.link
    return [
        member.inventory.lock,
        link.session.outgoing.lock(),
        link.session._attaching,
        link.thread._starting,
    ]


def test_hazard_15_the_finalizer_of_a_lease_waits_for_no_lock(
    manager: PoolManager, witness: Witness
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    garbage: list[Any] = [pool.checkout(timeout=10)]
    assert _collects(garbage, _locks(pool), 10)
    with pool.checkout(timeout=10) as session:
        session.ask("a new one")
    assert _pool_stats(manager)["counters"]["leaked"] == 1
    assert witness.figures()["peak"] == 1


def test_hazard_15_a_naive_finalizer_that_gives_back_waits() -> None:
    """The stand-in: where the lock is its own thread's, it waits for ever."""
    lock = threading.Lock()
    given_back = []

    class Lease:
        def __del__(self) -> None:
            with lock:
                given_back.append("resource")

    assert not _collects([Lease()], [lock], 0.1)
    assert given_back


@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.parametrize("way", ["release", "discard", "leak"])
def test_hazard_15_a_lease_that_ends_in_the_middle_of_a_locked_region(
    manager: PoolManager, witness: Witness, fork: Forks, way: str, contended: bool
) -> None:
    """An application's own finalizer may end a lease: at whatever instruction it runs, it gets through."""
    pool = manager.pool("p", witness.recipe(), max_size=1)

    class Owner:
        def __init__(self) -> None:
            self.lease = pool.checkout(timeout=10)

        def __del__(self) -> None:
            if way != "leak":
                getattr(self.lease, way)()

    def use() -> bool:
        with pool.checkout(timeout=20) as session:
            return bool(session.ask("mine"))

    owners = [Owner()]
    waiter = fork(use) if contended else None
    if contended:
        wait_until(lambda: _pool_stats(manager)["waiting"] == 1, "a waiter elsewhere")

    def finalize() -> None:
        with pool._local.member.inventory.lock:
            owners.clear()

    finalizing = threading.Thread(target=finalize, daemon=True)
    finalizing.start()
    finalizing.join(10)
    assert not finalizing.is_alive(), "a deadlock"
    if waiter is not None:
        assert waiter.result()
    assert use()
    assert _pool_stats(manager)["counters"]["leaked"] == (way == "leak")
    assert witness.figures()["peak"] == 1


def test_hazard_15_a_lease_that_is_released_after_it_was_finalized(
    manager: PoolManager, witness: Witness
) -> None:
    """In a cycle the collector may finalize the lease before its owner, whose finalizer releases it.

    What the lease's finalizer has noted as leaked is then lent again, while it is being closed.
    """
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=10)
    with pool._local.member.inventory.lock:  # the thread that closes it comes later
        lease.__del__()
        lease.release()
        with pytest.raises(IndexError):
            pool._local.shelf_of(pool._local.default_key).pop()
