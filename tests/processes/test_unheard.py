"""Words that a dying server has not read: what was given back then is no capacity lost.

Its successor finds the slots in the journal, and waits until their process says what it really has. A process
that has nothing any more must say so too, although it needs nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mppool import CheckoutTimeout, PoolManager
from mppool.rendezvous.paths import ManagerPaths
from tests.helpers import Fork, is_alive, wait_until
from tests.processes.witness import Witness

Forks = Callable[..., Fork]


def _die_unheard(manager: PoolManager, meanwhile: Callable[[], Any]) -> None:
    """The server is killed, and has not read what was said to it last."""
    pid = manager.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        meanwhile()
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the server's death")


def _use(pool: Any) -> bool:
    with pool.checkout(timeout=15) as session:
        return bool(session.ask("mine"))


def test_what_was_closed_while_the_server_died_can_be_had_elsewhere(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=10)
    _die_unheard(manager, lease.discard)
    assert fork(_use, pool).result()
    assert witness.figures()["peak"] == 1


def test_what_was_granted_to_somebody_who_gave_up_while_the_server_died_can_be_had_elsewhere(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    assert _use(pool)
    pool.reset()
    wait_until(lambda: witness.figures()["held"] == 0, "the old generation's end")

    def give_up() -> None:
        with pytest.raises(CheckoutTimeout):
            pool.checkout(timeout=0.3)  # a shorter one would not even ask a server that is stopped

    for _ in range(3):
        _die_unheard(manager, give_up)
        assert fork(_use, pool).result()
    assert witness.figures()["peak"] == 1


def test_what_is_closed_after_an_orderly_shutdown_can_be_had_elsewhere(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=10)
    manager.shutdown()
    lease.discard()
    assert fork(_use, pool).result()
    assert witness.figures()["peak"] == 1


def test_what_is_said_to_a_server_that_has_just_left_is_said_to_the_next_one(
    manager: PoolManager,
    witness: Witness,
    fork: Forks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fault f05: it had read everything when it left, and this thread did not know yet that it had left."""
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=10)
    errands: Any = pool._local.member.link.errands
    receive, noticed = errands._receive, threading.Event()

    def receive_late(channel: Any) -> None:
        noticed.wait(20)
        receive(channel)

    monkeypatch.setattr(errands, "_receive", receive_late)
    server = manager.server_pid
    assert server is not None
    manager.shutdown()
    wait_until(lambda: not is_alive(server), "the server's end")
    lease.discard()
    noticed.set()
    assert fork(_use, pool).result()
    assert witness.figures()["peak"] == 1


def test_after_an_orderly_shutdown_a_process_that_has_nothing_starts_nothing(
    manager: PoolManager, witness: Witness
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    assert _use(pool)
    manager.shutdown()
    wait_until(lambda: witness.figures()["held"] == 0, "what was idle to be closed")
    link: Any = pool._local.member.link
    wait_until(lambda: link.session.outgoing.channel is None, "the end of the session")
    assert any(thread.name == "mppool-errands-t" for thread in threading.enumerate())
    assert not link.session.unheard
    assert manager.server_pid is None


def test_who_has_nothing_and_was_told_farewell_is_not_waited_for_after_a_damaged_journal(
    manager: PoolManager, witness: Witness, fork: Forks, runtime_dir: Path
) -> None:
    """As if the server had been killed while it left, and its journal damaged in that moment."""
    pool = manager.pool("p", witness.recipe(), max_size=1)
    assert _use(pool)
    paths = ManagerPaths(runtime_dir, manager.name)
    left = {path: path.read_bytes() for path in paths.members.iterdir()}
    assert left
    manager.shutdown()
    session: Any = pool._local.member.link.session
    wait_until(lambda: manager.server_pid is None, "its end")
    wait_until(lambda: not session.witness.is_shown, "this member to be seen no more")
    for path, content in left.items():
        path.write_bytes(content)
    paths.journal.write_bytes(b"nothing of a journal")
    assert fork(_use, pool).result()
    assert _use(pool)
    assert session.witness.is_shown
    assert witness.figures()["peak"] == 1


def test_who_has_something_open_is_seen_while_no_server_can_be_had(
    manager: PoolManager, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next server takes it for gone, and grants its slot to somebody else."""

    def no_server(*_: object) -> bool:
        raise TimeoutError

    pool = manager.pool("p", witness.recipe(), max_size=1)
    session: Any = pool._local.member.link.session
    with pool.checkout(timeout=10) as mine:
        monkeypatch.setattr(session, "_attach", no_server)
        server = manager.server_pid
        assert server is not None
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: session.outgoing.channel is None, "the end of the session")
        with pytest.raises(TimeoutError):
            session.ensure(0.0)
        assert session.witness.is_shown
        monkeypatch.undo()
        assert mine.ask("mine")
    assert _use(pool)
    assert witness.figures()["peak"] == 1


def test_who_could_not_attach_for_a_checkout_is_not_seen(
    manager: PoolManager, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    session: Any = pool._local.member.link.session

    def in_vain(*_: object) -> bool:
        session.witness.show()
        raise TimeoutError

    monkeypatch.setattr(session, "_attach", in_vain)
    with pytest.raises(CheckoutTimeout):
        pool.checkout(timeout=0.1)
    assert not session.witness.is_shown
