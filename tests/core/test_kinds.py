"""A pool for threads and a pool for event loops share no name: the books serve those who came first."""

from __future__ import annotations

import msgspec
import pytest

from mppool.core.decisions import Grant, Refuse
from mppool.core.events import Attach, Died, Held, Kind
from mppool.ids import ProcessId
from mppool.options import PoolOptions
from tests.core.desk import Desk, P, Q, R, declared, held


def attach(desk: Desk, process: ProcessId, kind: Kind, inventory: list[Held] | None = None) -> None:
    """The next session of a process, which says for whom its pool is."""
    desk._sessions += 1
    said = msgspec.structs.replace(declared(PoolOptions(max_size=3)), kind=kind)
    desk.say(process, Attach("", [said], inventory or []), desk._sessions)


@pytest.fixture
def desk() -> Desk:
    made = Desk()
    attach(made, P, "threads")
    return made


def test_whoever_means_another_kind_is_told_so(desk: Desk) -> None:
    attach(desk, Q, "loops")
    refused = desk.ask(Q, "loop key")
    assert isinstance(refused, Refuse)
    assert refused.reason == "mismatch"
    assert "process 101 has declared this name with manager.pool" in refused.text
    assert "process 102 with manager.apool" in refused.text
    assert isinstance(desk.ask(P), Grant)


def test_those_who_say_the_same_are_served(desk: Desk) -> None:
    attach(desk, Q, "threads")
    assert isinstance(desk.ask(Q), Grant)


def test_an_older_release_says_nothing_and_is_served(desk: Desk) -> None:
    attach(desk, Q, "")
    assert isinstance(desk.ask(Q), Grant)
    attach(desk, R, "loops")
    assert isinstance(desk.ask(R), Refuse)


def test_when_the_last_of_the_first_kind_is_gone_the_other_is_served(desk: Desk) -> None:
    attach(desk, Q, "threads")
    attach(desk, R, "loops")
    desk.dies(P)
    assert isinstance(desk.ask(R), Refuse)
    attach(desk, Q, "")  # it has closed the pool for itself
    assert isinstance(desk.ask(R), Grant)
    assert R in desk.pool.declarations.declarers_of("k")
    attach(desk, P, "threads")
    refused = desk.ask(P)
    assert isinstance(refused, Refuse)
    assert "process 103 has declared this name with manager.apool" in refused.text


def test_what_is_set_aside_changes_no_option(desk: Desk) -> None:
    desk.wait(1.0)
    desk._sessions += 1
    options = PoolOptions(max_size=99, min_size=2)
    said = msgspec.structs.replace(declared(options), kind="loops")
    desk.say(Q, Attach("", [said], []), desk._sessions)
    assert desk.pool.capacity.declared == 3
    assert desk.pool.min_size.size == 0
    assert desk.pool.declarations.declarers() == [P]
    desk.dies(P)
    desk.ask(Q)
    assert (desk.pool.capacity.declared, desk.pool.min_size.size) == (99, 2)


def test_under_the_next_server_those_who_hold_something_came_first() -> None:
    number = Desk(P).granted(P)
    desk = Desk(epoch=2)
    attach(desk, Q, "loops")  # it was refused, and is the first to attach again
    attach(desk, P, "threads", [held(number)])
    assert isinstance(desk.ask(P), Grant)
    assert isinstance(desk.ask(Q), Refuse)
    desk.say(P, Died())
    assert isinstance(desk.ask(Q), Grant)
