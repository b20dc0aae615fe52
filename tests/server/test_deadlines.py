"""The next deadline is reckoned where something has changed it, and only there."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from mppool.core.decisions import Grant, Queued, Refuse
from mppool.core.events import Checkout, Opened, Resize
from mppool.ids import Ticket
from mppool.rendezvous.paths import ManagerPaths
from mppool.server.loop import Server
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
