"""SIGSTOP: a stopped process is not dead, and no other waits for it longer than it must."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mppool import CheckoutTimeout, Lease, PoolError, PoolManager, ServerUnavailable
from mppool.link import server_link as link
from mppool.link import session as link_session
from mppool.process.waiter import LocalWaiter
from mppool.rendezvous.paths import manager_paths
from mppool.worker import checkout as checking_out
from tests.helpers import PATIENCE, Fork, is_alive, wait_until
from tests.processes.witness import Session, Witness

Forks = Callable[..., Fork]


class _Keeper:
    """A child that holds what it was told to, idle or in use, until it is told to end."""

    def __init__(self, fork: Forks, pool: object, idle: int) -> None:
        reading, writing = os.pipe()

        def keep() -> None:
            leases = [pool.checkout(timeout=10) for _ in range(idle)]  # type: ignore[attr-defined]
            for lease in leases:
                lease.release()
            os.write(writing, b"x")
            signal.pause()

        self.child = fork(keep)
        os.close(writing)
        assert os.read(reading, 1) == b"x"
        os.close(reading)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.child.pid, number)
        if number is signal.SIGSTOP:
            wait_until(lambda: _state(self.child.pid) == "T", "it has stopped")


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def test_a_stopped_holder_is_passed_by_and_another_is_asked(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    """Rule 7: the stopped one is the richest, so it is asked first; 100 ms later the other gives."""
    pool = manager.pool("p", witness.recipe(), max_size=5)
    stopped = _Keeper(fork, pool, idle=3)
    stopped.signal(signal.SIGSTOP)
    _Keeper(fork, pool, idle=2)
    began = time.monotonic()
    with pool.checkout(timeout=20) as session:
        took = time.monotonic() - began
        session.ask("served by the other")
    assert took < 5.0
    assert witness.figures()["peak"] <= 5
    stopped.signal(signal.SIGCONT)
    leases = [pool.checkout(timeout=20) for _ in range(5)]
    for lease in leases:
        lease.release()
    assert witness.figures()["peak"] <= 5


def test_a_stopped_process_keeps_its_slots(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=2)
    keeper = _Keeper(fork, pool, idle=2)
    keeper.signal(signal.SIGSTOP)
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0.5)
    assert witness.figures()["peak"] == 2
    keeper.signal(signal.SIGCONT)
    with pool.checkout(timeout=20) as session:
        session.ask("moved")
    assert witness.figures()["peak"] == 2


@pytest.mark.parametrize("timeout", [0, 0.01, 0.1, 0.2])
@pytest.mark.parametrize("attached", [True, False])
def test_with_a_stopped_server_short_timeouts_are_kept_too(
    manager: PoolManager, attached: bool, timeout: float
) -> None:
    pool = manager.pool("p", list, max_size=1)
    lease = pool.checkout(timeout=10) if attached else None
    starter = PoolManager("t", linger=60.0)
    starter.start()  # without attaching this process
    server = manager.server_pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        wait_until(lambda: _state(server) == "T", "it has stopped")
        took = []
        for _ in range(100):  # the machine may be busy: the best of a few
            began = time.monotonic()
            with pytest.raises(CheckoutTimeout):
                pool.checkout(timeout=timeout)
            took.append(time.monotonic() - began)
            if min(took) < timeout + 0.03:
                break
        assert timeout - 0.005 <= min(took) < timeout + 0.03
    finally:
        os.kill(server, signal.SIGCONT)
    if lease is not None:
        lease.release()
    with pool.checkout(timeout=10):
        pass


@pytest.mark.parametrize("attached", [True, False])
def test_with_a_stopped_server_a_checkout_stops_waiting_at_its_timeout(
    manager: PoolManager, witness: Witness, fork: Forks, attached: bool
) -> None:
    """Promise 4, whether this process knows the server already or not."""
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = None
    if attached:
        lease = pool.checkout(timeout=10)
    else:
        manager.start()
        manager = PoolManager("t", linger=0.0)

    server = manager.server_pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        wait_until(lambda: _state(server) == "T", "it has stopped")

        def attempt() -> tuple[float, str]:
            began = time.monotonic()
            try:
                pool.checkout(timeout=0.4)
            except PoolError as error:
                return time.monotonic() - began, type(error).__name__
            return 0.0, "served"

        for _ in range(10):  # the machine may be busy: the best of a few
            took, error = attempt() if attached else fork(attempt).result()
            assert error == "CheckoutTimeout"
            assert took >= 0.35
            if took < 0.8:
                break
        assert took < 0.8
        if lease is not None:
            lease.resource.ask("resources in use go on")
            lease.release()
            with pool.checkout(timeout=0) as session:  # warm: asks nobody
                session.ask("and warm checkouts too")
    finally:
        os.kill(server, signal.SIGCONT)
    with pool.checkout(timeout=10) as session:
        session.ask("as before")
    assert witness.figures()["peak"] == 1


def test_with_a_stopped_server_a_checkout_without_timeout_waits(
    manager: PoolManager, witness: Witness, fork: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to end in a TypeError when the server did not answer to the handshake for 5 s."""
    monkeypatch.setattr(link_session, "CONTROL_DEADLINE_S", 0.1)
    pool = manager.pool("p", witness.recipe(), max_size=1)
    manager.start()
    server = manager.server_pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)

    def use() -> int:
        with pool.checkout(timeout=None) as session:
            session.ask("at last")
            return session.number

    child = fork(use)
    time.sleep(0.5)  # several handshakes that are not answered
    assert is_alive(child.pid)
    os.kill(server, signal.SIGCONT)
    assert child.result() == 1


def test_a_process_that_is_stopped_during_the_recovery_keeps_what_it_holds(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    """The journal says what it holds until it attaches: the cap holds, also if the next server dies too."""
    pool = manager.pool("p", witness.recipe(), max_size=3)
    keeper = _Keeper(fork, pool, idle=2)
    keeper.signal(signal.SIGSTOP)
    pool.checkout(timeout=20).release()
    for _ in range(2):
        server = wait_until(lambda: manager.server_pid, "a server")
        assert server is not None
        os.kill(server, signal.SIGKILL)
        wait_until(lambda server=server: not is_alive(server), "its death")  # type: ignore[misc]
        lease = pool.checkout(timeout=5)
        lease.resource.ask("the third slot")
        with pytest.raises(CheckoutTimeout):
            pool.checkout(timeout=0.3)
        lease.discard()
    assert witness.figures()["peak"] <= 3
    keeper.signal(signal.SIGCONT)
    leases = [pool.checkout(timeout=20) for _ in range(3)]
    for one in leases:
        one.release()
    assert witness.figures()["peak"] <= 3


def test_a_session_is_a_plain_object(witness: Witness) -> None:
    session = Session(witness.path)
    session.ask("the witness itself works")
    session.close()
    assert witness.figures()["held"] == 0


def test_whoever_wants_something_of_a_stopped_server_is_told_that_it_does_not_answer(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch, fork: Forks
) -> None:
    monkeypatch.setattr(link, "CONTROL_DEADLINE_S", 0.2)
    monkeypatch.setattr("mppool.manager.CONTROL_DEADLINE_S", 0.2)
    monkeypatch.setattr("mppool.manager._SHUTDOWN_PATIENCE_S", 0.2)
    monkeypatch.setattr(link_session, "START_GRACE_S", 0.2)
    monkeypatch.setattr(link_session, "CONTROL_DEADLINE_S", 0.2)
    pool = manager.pool("p", list, max_size=1)
    pool.checkout(timeout=10).release()
    pid = manager.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: _state(pid) == "T", "it has stopped")
        for ask in (pool.stats, lambda: manager.drain("p", 0), manager.shutdown):
            with pytest.raises(ServerUnavailable, match="doctor"):
                ask()
        monkeypatch.setattr(link, "CONTROL_DEADLINE_S", 60.0)
        for ask in (lambda: pool.drain(0.3), lambda: pool.wait_ready(0.3)):
            began = time.monotonic()
            with pytest.raises(ServerUnavailable, match="doctor"):
                ask()
            assert (
                time.monotonic() - began < 5.0
            )  # a caller that says how long it waits waits no longer

        def attach() -> None:  # which the parent is already
            for ask in (manager.start, manager.connect):
                with pytest.raises(ServerUnavailable, match="doctor"):
                    ask()

        fork(attach).result()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert pool.stats()["size"] <= 1


def test_with_a_stopped_server_threads_go_on_with_what_they_have(manager: PoolManager) -> None:
    """A thread in its call to the server used to be given what others released, and kept it until its timeout."""
    pool = manager.pool("p", list, max_size=2)
    uses, over = dict.fromkeys(range(6), 0), threading.Event()

    def use(number: int) -> None:
        while not over.is_set():
            with pool.checkout(timeout=60):
                time.sleep(0.002)
            uses[number] += 1

    with ThreadPoolExecutor(6) as threads:
        workers = [threads.submit(use, number) for number in uses]
        wait_until(lambda: min(uses.values()) > 0, "all have used one")
        server = manager.server_pid
        assert server is not None
        os.kill(server, signal.SIGSTOP)
        try:
            wait_until(lambda: _state(server) == "T", "it has stopped")
            for _ in range(2):  # twice, for the first ones may have been under way
                before = dict(uses)
                wait_until(
                    lambda before=before: all(uses[one] > before[one] + 1 for one in uses),  # type: ignore[misc]
                    "every thread goes on",
                )
            assert _state(server) == "T"
        finally:
            over.set()
            os.kill(server, signal.SIGCONT)
        for worker in workers:
            worker.result()
    assert pool.stats()["size"] <= 2


def test_what_a_neighbour_releases_serves_a_thread_that_the_stopped_server_does_not_answer(
    manager: PoolManager,
) -> None:
    """Whether it asked before the server stopped or after."""
    pool = manager.pool("p", list, max_size=1)
    lease = pool.checkout(timeout=10)
    server = manager.server_pid
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        wait_until(lambda: _state(server) == "T", "it has stopped")
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(pool.checkout, 60)
            silence = pool._local.member.silence
            wait_until(lambda: silence.until > time.monotonic(), "it has asked in vain")
            lease.release()
            waiting.result(timeout=30).release()
        assert _state(server) == "T"
    finally:
        os.kill(server, signal.SIGCONT)
    with pool.checkout(timeout=10):
        pass
    assert pool.stats()["size"] == 1


def test_a_short_wait_for_a_stopped_server_keeps_no_cpu_busy(
    manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found by tests/simulation: whoever had no time left to ask again looked around without a pause.
    pool = manager.pool("p", lambda: object(), max_size=1)
    manager.start()
    looks = []
    wait = LocalWaiter.wait

    def counted(waiter: LocalWaiter, until: float | None) -> object:
        looks.append(until)
        return wait(waiter, until)

    monkeypatch.setattr(LocalWaiter, "wait", counted)
    pid = manager.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(CheckoutTimeout):
            pool.checkout(timeout=0.4)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(looks) < 50


def test_a_server_that_starts_slowly_costs_no_checkout_that_has_time(
    manager: PoolManager, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks again after its patience with a server, which is shorter than its timeout."""
    for name in ("ASK_PATIENCE_S", "LONGEST_ASK_S", "START_PATIENCE_S"):
        monkeypatch.setattr(checking_out, name, 0.02)
    monkeypatch.setattr(link_session, "START_GRACE_S", 0.02)
    pool = manager.pool("p", list, max_size=1)
    manager_paths("t", runtime_dir).prepare()
    with FileLock(
        manager_paths("t", runtime_dir).start_lock, mode=0o600
    ):  # somebody is starting one
        with pytest.raises(
            (CheckoutTimeout, ServerUnavailable), match="somebody else is starting one"
        ):
            pool.checkout(timeout=0.1)
        leases: list[Lease[Any]] = []
        thread = threading.Thread(target=lambda: leases.append(pool.checkout(timeout=PATIENCE)))
        thread.start()
        silence = pool._local.member.silence
        first = silence.until
        wait_until(lambda: silence.until > first, "its patience is over")
        assert not leases
    thread.join()
    leases[0].release()
