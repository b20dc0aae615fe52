"""Which descriptors are ready, and when it pays to wait awake."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from time import monotonic

import pytest

from mppool.process.alertness import BRISK
from mppool.server import poller as module
from mppool.server.poller import READ, WRITE, Poller

Pairs = list[tuple[socket.socket, socket.socket]]


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    made = [socket.socketpair() for _ in range(3)]
    yield made
    for pair in made:
        for end in pair:
            end.close()


@pytest.fixture
def poller(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Poller[str]]:
    """The sockets of alice, bob and carol; a sleep that ends within 20 s has ended at once."""
    monkeypatch.setattr(module, "BRISK_S", 20.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    made: Poller[str] = Poller()
    for name, (ours, _) in zip(("alice", "bob", "carol"), pairs, strict=True):
        made.register(ours.fileno(), name)
    yield made
    made.close()


def _ask(poller: Poller[str], pair: tuple[socket.socket, socket.socket], times: int = 1) -> None:
    """Let a sleep end with a question, so many times."""
    ours, theirs = pair
    for _ in range(times):
        theirs.send(b"?")
        assert len(poller.wait(20.0)) == 1
        ours.recv(1)


def test_it_tells_who_is_ready_for_what(poller: Poller[str], pairs: Pairs) -> None:
    assert poller.at_once() == poller.wait(0.0) == []
    pairs[0][1].send(b"?")
    assert poller.at_once() == poller.wait(20.0) == [("alice", READ)]
    poller.modify(pairs[1][0].fileno(), READ | WRITE)
    assert sorted(poller.at_once()) == [("alice", READ), ("bob", WRITE)]
    poller.unregister(pairs[0][0].fileno())
    assert poller.at_once() == [("bob", WRITE)]


def test_whoever_asks_again_and_again_is_waited_for_awake(
    poller: Poller[str], pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAKE_S", 20.0)
    _ask(poller, pairs[0], BRISK + 1)  # the first one only makes it known
    later = threading.Timer(0.05, pairs[0][1].send, [b"?"])
    later.start()
    assert poller.at_once() == [("alice", READ)]
    later.join()


def test_if_he_does_not_come_there_is_sleep_again(
    poller: Poller[str], pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ask(poller, pairs[0], BRISK + 1)
    assert poller.at_once() == []
    monkeypatch.setattr(module, "AWAKE_S", 1000.0)  # the test would not end
    assert poller.at_once() == []


def test_what_comes_late_has_not_paid(
    poller: Poller[str], pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others had our CPU for so long: on a busy machine one that sleeps gets it back earlier."""
    _ask(poller, pairs[0], BRISK + 1)
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def others_run() -> None:
        now[0] += 2 * module.AWAKE_S
        pairs[0][1].send(b"?")

    monkeypatch.setattr(os, "sched_yield", others_run)
    assert poller.at_once() == [("alice", READ)]
    assert not poller.alertness.is_awake


def test_one_that_was_waited_for_in_vain_has_to_ask_more_often_before_it_is_again(
    poller: Poller[str], pairs: Pairs
) -> None:
    _ask(poller, pairs[0], BRISK + 1)
    assert poller.alertness.is_awake
    assert poller.at_once() == []
    _ask(poller, pairs[0], 2 * BRISK - 1)
    assert not poller.alertness.is_awake
    _ask(poller, pairs[0])
    assert poller.alertness.is_awake
    pairs[0][1].send(b"?")
    assert poller.at_once() == [("alice", READ)]
    pairs[0][0].recv(1)
    assert poller.at_once() == []
    _ask(poller, pairs[0], 2 * BRISK)
    assert poller.alertness.is_awake, "it did come in between"


def test_two_that_ask_in_turns_are_waited_for_awake(
    poller: Poller[str], pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decision 0099: with two clients each question would wake the server."""
    monkeypatch.setattr(module, "AWAKE_S", 20.0)
    for turn in range(BRISK + 2):  # the first of each only makes it known
        assert not poller.alertness.is_awake
        _ask(poller, pairs[turn % 2])
    later = threading.Timer(0.05, pairs[1][1].send, [b"?"])
    later.start()
    assert poller.at_once() == [("bob", READ)]
    later.join()
    pairs[0][1].send(b"?")  # and both together
    assert sorted(poller.at_once()) == [("alice", READ), ("bob", READ)]
    assert poller.alertness.is_awake


def test_nobody_is_waited_for_awake_where_more_than_two_ask(
    poller: Poller[str], pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAKE_S", 1000.0)
    for _ in range(BRISK):
        for pair in pairs:
            _ask(poller, pair)
            assert poller.at_once() == []
    _ask(poller, pairs[0], BRISK + 1)
    pairs[1][1].send(b"?")
    assert poller.at_once() == [("bob", READ)], "who had asked too long ago to be known"
    pairs[1][0].recv(1)
    assert poller.at_once() == []


def test_nobody_is_waited_for_awake_after_a_long_sleep_or_on_a_single_cpu(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAKE_S", 1000.0)
    for cpus, brisk_s in (({0, 1}, 0.0), ({0}, 20.0)):
        monkeypatch.setattr(module, "BRISK_S", brisk_s)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, cpus=cpus: cpus)
        poller: Poller[str] = Poller()
        poller.register(pairs[0][0].fileno(), "alice")
        _ask(poller, pairs[0], BRISK + 1)
        began = monotonic()
        assert poller.at_once() == []
        assert monotonic() - began < 100
        poller.close()


def test_what_was_never_registered_is_unregistered_without_a_word(
    poller: Poller[str], pairs: Pairs
) -> None:
    poller.unregister(pairs[0][1].fileno())
    assert poller.at_once() == []
