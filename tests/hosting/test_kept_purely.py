"""What is kept for a worker, both ends in this process: no host, no socket but a pair, no waiting. See hosting/keeping.py."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mppool import InProcessManager
from mppool.errors import CheckoutTimeout
from mppool.hosting import frames, streams
from mppool.hosting.keeping import KEPT_S, Flag, Kept, Right, may_be_kept
from mppool.hosting.lending import Lending
from mppool.hosting.streams import Stream
from mppool.options import PoolOptions
from mppool.recipe import Recipe
from mppool.stats.pins import Pins
from tests.hosting.things import Thing, reset


class Host:
    """A pool of one resource, and the lease of one stream."""

    def __init__(self, manager: InProcessManager, **options: Any) -> None:
        self.pool = manager.pool("p", Thing, max_size=1, reset=reset, **options)
        self.called: list[bool] = []
        self.kept = Kept(call_in_all=self._called_in, call_in_one=lambda: None)
        self.lending = Lending(self.pool, self.kept, Pins())
        assert self.lending.right is not None
        self.theirs = Right(os.dup(self.lending.right.fileno()))
        self.lending.take(0, None, "", "")
        self.called.clear()

    def _called_in(self) -> None:
        self.called.append(self.kept.flag.is_set())

    def given_back(self) -> None:
        """The worker releases, and the host hears of it."""
        self.theirs.give()
        self.lending.keep()

    def resource(self) -> Any:
        return self.lending.living().resource

    def is_free(self) -> bool:
        """Whether somebody else can have the resource."""
        try:
            lease = self.pool.checkout(timeout=0)
        except CheckoutTimeout:
            return False
        lease.release()
        return True


@pytest.fixture
def manager() -> Iterator[InProcessManager]:
    made = InProcessManager("kept")
    yield made
    made.shutdown()


@pytest.fixture
def host(manager: InProcessManager) -> Iterator[Host]:
    made = Host(manager)
    yield made
    made.lending.end(frames.GIVEN_BACK)


def test_what_is_kept_was_reset_and_has_the_next_number(host: Host) -> None:
    host.resource().value = 8
    host.given_back()
    assert host.lending.is_kept
    assert host.lending.number == 2
    assert host.resource().resets == 1
    assert not host.is_free()


def test_handles_of_the_lease_before_are_gone(host: Host) -> None:
    host.lending.living().call(0, "part", ("one",), {})
    assert len(host.lending._handles) == 2
    host.given_back()
    assert len(host.lending._handles) == 1


def test_of_two_ends_one_has_it(host: Host) -> None:
    host.given_back()
    assert host.theirs.take()
    # The worker was faster: the host leaves it what it has.
    assert not host.lending.call_in()
    assert host.lending.is_out
    assert not host.is_free()


def test_what_is_called_in_is_free_and_the_worker_has_it_no_more(host: Host) -> None:
    host.given_back()
    assert host.lending.call_in()
    assert not host.theirs.take()
    assert not host.lending.is_out
    assert not host.lending.is_kept
    assert host.is_free()
    # Nobody has used it, so it is no use.
    (entry,) = host.pool._local.entries()
    assert entry.uses == 2  # the lease at the beginning, and the one of is_free


def test_nothing_is_kept_while_somebody_waits(host: Host) -> None:
    host.kept.contended(True)
    host.given_back()
    assert not host.lending.is_kept
    assert not host.theirs.take()
    assert host.is_free()


def test_a_worker_that_has_taken_it_again_keeps_it_although_somebody_waits_now(host: Host) -> None:
    host.theirs.give()
    assert host.theirs.take()  # its next checkout is faster than its release
    host.kept.contended(True)
    host.lending.keep()
    assert host.lending.is_out
    assert not host.is_free()


def test_a_checkout_that_asks_has_what_is_kept_and_only_where_it_may(host: Host) -> None:
    host.given_back()
    assert host.lending.asked_for(None, "", "")
    assert host.lending.is_out
    assert not host.theirs.take()
    host.given_back()
    assert not host.lending.asked_for("ada", "", "")  # what another identity has is not for it
    assert not host.lending.is_out
    host.lending.take(0, None, "", "")
    host.given_back()
    host.kept.contended(True)
    assert not host.lending.asked_for(None, "", "")  # others wait: it goes to the end of the line
    assert not host.lending.is_out


def test_what_may_not_go_on_does_not(host: Host) -> None:
    first = host.resource()
    host.lending._spoils = True
    host.given_back()
    assert not host.lending.is_out
    assert not host.theirs.take()
    host.lending.take(0, None, "", "")
    assert host.resource() is not first
    # The worker has its next lease already: another resource takes its place.
    second = host.resource()
    host.lending._spoils = True
    host.theirs.give()
    assert host.theirs.take()
    host.lending.keep()
    assert host.lending.is_out
    assert host.lending.number == 3
    assert host.resource() is not second


def test_what_ends_before_the_worker_gives_it_back_is_made_up_for(host: Host) -> None:
    host.lending.end(frames.GIVEN_BACK)  # quiet for too long
    host.theirs.give()
    host.lending.keep_nothing(True)
    assert not host.theirs.take()
    assert not host.lending.is_out
    host.theirs.give()
    assert host.theirs.take()  # the worker was faster, and has a lease
    host.lending.keep_nothing(True)
    assert host.lending.is_out


def test_the_flag_comes_before_what_is_called_in(host: Host) -> None:
    with host.kept.waiting():
        assert host.called == [True]
        assert host.lending.is_wanted()
    assert not host.kept.flag.is_set()
    host.kept.contended(True)
    assert host.called == [True, True]
    with host.kept.waiting():
        pass
    assert host.kept.flag.is_set()  # others of the manager wait still
    host.kept.contended(False)
    assert not host.kept.flag.is_set()


def test_pools_that_look_at_each_checkout_keep_nothing() -> None:
    class Opens(Recipe[Any]):
        pass

    recipe = Opens()

    def may(**options: Any) -> bool:
        return may_be_kept(recipe, PoolOptions(placement="host", **options))

    assert may()
    assert may(check_idle_for=None)
    for options in (
        {"check_idle_for": 0.0}, {"max_lease_warn": 9.0}, {"max_lease_kill": 9.0}, {"keep": False}, {"lanes": {"web": 1}},
        {"track_leaks": True}, {"wait_warn": 9.0},
    ):  # fmt: skip
        assert not may(**options), options
    recipe.token_scope = "scope"
    assert not may()


# --- the worker's end ----------------------------------------------------------------------------------------


class Worker:
    """A stream, and the other end of it. told: what was said there, and whether the right was there by then."""

    def __init__(self) -> None:
        ours, self.other = socket.socketpair()
        self.stream = Stream(ours, "p", 0)
        self.stream.lease = 1
        self.right, self.flag = Right(), Flag()
        self.stream._right, self.stream._flag = (
            Right(os.dup(self.right.fileno())),
            Flag(os.dup(self.flag.fileno())),
        )
        self.told: list[tuple[Any, ...]] = []
        self.stream.tell = self._tell  # type: ignore[method-assign]

    def _tell(self, lease: int, op: int, how: int, keeps: bool) -> None:
        was_there = self.right.take()
        if was_there:
            self.right.give()
        self.told.append((lease, op, how, keeps, was_there))

    def gives_back(self) -> None:
        self.stream.give_back(1, frames.GIVEN_BACK, keeps=True)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.stream.close()
    made.other.close()


def test_the_right_is_there_before_the_host_hears_of_the_release(worker: Worker) -> None:
    worker.gives_back()
    assert worker.told == [(1, frames.RELEASE, frames.GIVEN_BACK, True, True)]
    assert worker.stream.is_kept
    assert worker.stream.has_kept()
    assert worker.stream.lease == 2
    assert not worker.right.take()


def test_what_the_host_has_called_in_is_asked_for(worker: Worker) -> None:
    worker.gives_back()
    assert worker.right.take()
    assert not worker.stream.has_kept()
    assert worker.stream.lease == 1


def test_while_somebody_waits_a_worker_keeps_and_takes_nothing(worker: Worker) -> None:
    worker.flag.set(True)
    worker.gives_back()
    assert worker.told == [(1, frames.RELEASE, frames.GIVEN_BACK, False, False)]
    assert not worker.stream.is_kept
    worker.flag.set(False)
    worker.gives_back()
    worker.flag.set(True)
    assert not worker.stream.has_kept()
    assert worker.right.take()  # it is the host's to read


def test_what_is_kept_for_too_long_is_asked_for(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.gives_back()
    late = streams.monotonic() + KEPT_S
    monkeypatch.setattr(streams, "monotonic", lambda: late)
    assert not worker.stream.has_kept()  # the host may have stopped


def test_a_host_that_has_gone_is_noticed_at_the_checkout(worker: Worker) -> None:
    worker.gives_back()
    worker.other.close()
    assert not worker.stream.has_kept()
    assert worker.stream.is_closed
