"""The next deadline is reckoned where something has changed it, and only there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mppool.core.decisions import Grant, Queued, Refuse
from mppool.core.events import Abandoned, Checkout, Opened, Resize
from mppool.ids import Ticket
from mppool.rendezvous.paths import ManagerPaths
from mppool.server.loop import BUSY_TURNS, Server
from mppool.wire.messages import Done
from tests.helpers import PATIENCE
from tests.server.clients import Background, Client, Member


@pytest.fixture
def reckoned(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the server has reckoned it."""
    seen: list[float] = []
    reckon = Server._next_deadline

    def noting(self: Server, now: float) -> float:
        seen.append(now)
        return reckon(self, now)

    monkeypatch.setattr(Server, "_next_deadline", noting)
    return seen


def _full(paths: ManagerPaths) -> Member:
    member = Member(paths, max_size=1, start=False)
    grant = member.checkout()
    assert isinstance(grant, Grant)
    member.errand.send(Opened(grant.number, 0.0))
    return member


def _refused(member: Member) -> None:
    answer = member.checkout(0.0)
    assert isinstance(answer, Refuse)
    assert answer.text.startswith("1 resource exists (max_size=1) in 1 process: test")


def test_a_refusal_changes_none(paths: ManagerPaths, reckoned: list[float]) -> None:
    with Background(paths), _full(paths) as member:
        for _ in range(20):
            _refused(member)
        del reckoned[:]
        for _ in range(200):
            _refused(member)
        assert len(reckoned) < 20  # the server looks around now and then


@pytest.fixture
def by_hand(
    paths: ManagerPaths, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Server, Member]]:
    """A server on one CPU whose turns the test takes, and a member of it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    server = Server(paths, linger=60.0)
    server.open()
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            server._turn()

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        member = Member(paths, start=False)
    finally:
        ended.set()
        server._wake_up()
        serving.join()
    yield server, member
    member.close()
    server.leave()
    server.serve_forever()


def test_for_one_peer_alone_no_look_is_taken_before_the_sleep(
    by_hand: tuple[Server, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decision 0107: there was one before each, and it found nobody."""
    server, member = by_hand
    looks: list[object] = []

    def speak(times: int) -> None:
        for _ in range(times):
            member.errand.send(Abandoned(Ticket(10**9)))
            server._turn()

    speak(5)  # after the handshake, and the word that has ended the thread
    monkeypatch.setattr(server._poller, "at_once", lambda: looks.append(None) or [])
    speak(20)
    assert len(looks) < 5, "not with each word; a change of the server's files is noticed too"


def test_where_several_speak_deadlines_are_reckoned_now_and_then(
    by_hand: tuple[Server, Member], reckoned: list[float]
) -> None:
    server, member = by_hand
    for _ in range(BUSY_TURNS):
        for connection in (member.errand, member.call):
            connection.send(Abandoned(Ticket(10**9)))
        server._turn()
    assert len(reckoned) <= 3
    for _ in range(BUSY_TURNS):
        for connection in (member.errand, member.call):
            connection.send(Abandoned(Ticket(10**9)))
        server._turn()
    assert len(reckoned) >= 1, "nothing would ever be due"


def test_what_is_due_after_many_refusals_is_done_in_time(paths: ManagerPaths) -> None:
    """Also where nothing else happens until then."""
    with Background(paths), _full(paths) as member:
        for _ in range(20):
            _refused(member)
        began = time.monotonic()
        assert isinstance(member.checkout(0.3), Queued)
        refuse = member.errand.hear_a(Refuse)
        assert refuse.ticket == member.ticket
        assert 0.25 < time.monotonic() - began < PATIENCE


def test_what_is_due_is_done_while_refusals_go_on(paths: ManagerPaths) -> None:
    with Background(paths), _full(paths) as member:
        busy = Client(paths)
        busy.hello("call", member.welcome.session)
        assert isinstance(member.checkout(0.3), Queued)
        ended = threading.Event()

        def refuse_on() -> None:
            ticket = member.ticket + 1_000_000
            while not ended.is_set():
                ticket += 1
                assert isinstance(busy.call(Checkout("pool", "key", Ticket(ticket), 0.0)), Refuse)

        asking = threading.Thread(target=refuse_on)
        asking.start()
        try:
            assert member.errand.hear_a(Refuse).ticket == member.ticket
        finally:
            ended.set()
            asking.join()


def test_who_sees_room_after_refusals_is_served(paths: ManagerPaths) -> None:
    with Background(paths), _full(paths) as member:
        _refused(member)
        control = Client(paths)
        control.hello("control")
        answer: Any = control.call(Resize("pool", 2, max_size_given=True, min_size=None))
        assert isinstance(answer, Done)
        member.ticket = Ticket(member.ticket + 1_000_000)
        assert isinstance(member.call.call(Checkout("pool", "key", member.ticket, 0.0)), Grant)


def test_asked_twice_with_one_ticket_nothing_is_refused_that_was_granted(
    paths: ManagerPaths,
) -> None:
    with Background(paths), Member(paths, max_size=1, start=False) as member:
        grant = member.checkout(0.0)
        assert isinstance(grant, Grant)
        again = member.call.call(Checkout("pool", "key", member.ticket, 0.0))
        assert not isinstance(again, (Grant, Refuse))
