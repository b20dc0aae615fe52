"""`lease.cancel()` and `pool.lease_of()` by themselves: hooks, and leases that are over."""

from __future__ import annotations

from typing import Any

import pytest

from mppool import ForkedLease, InProcessManager, LeaseReleased, Opening, PoolManager, Recipe
from mppool.worker.ending import cancel
from tests.helpers import Fork


class Thing:
    """A resource. closed, cancelled: how often."""

    def __init__(self) -> None:
        self.closed = 0
        self.cancelled = 0

    def close(self) -> None:
        self.closed += 1

    def stop(self) -> None:
        self.cancelled += 1


def test_the_hook_is_called_and_the_resource_is_closed_at_its_release() -> None:
    pool = InProcessManager().pool("things", Thing, cancel=Thing.stop, max_size=1)
    lease = pool.checkout()
    thing = lease.resource
    assert lease.cancel() is True
    assert (thing.cancelled, thing.closed) == (1, 0)
    assert lease.resource is thing
    lease.release()
    assert thing.closed == 1
    with pool.checkout() as other:
        assert other is not thing


def test_where_there_is_no_hook_nothing_happens() -> None:
    pool = InProcessManager().pool("things", Thing, max_size=1)
    lease = pool.checkout()
    thing = lease.resource
    assert lease.cancel() is False
    lease.release()
    with pool.checkout() as again:
        assert again is thing


@pytest.mark.parametrize("answer", [False, ZeroDivisionError("no")], ids=repr)
def test_a_hook_that_cannot_says_so(answer: Any) -> None:
    def hook(thing: Thing) -> bool:
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    pool = InProcessManager().pool("things", Thing, cancel=hook, max_size=1)
    with pool.checkout() as thing:
        assert pool.lease_of(thing).cancel() is False
    assert pool.stats()["counters"]["hook_errors"] == isinstance(answer, Exception)


def test_what_was_given_back_is_not_cancelled() -> None:
    pool = InProcessManager().pool("things", Thing, cancel=Thing.stop, max_size=1)
    lease = pool.checkout()
    thing = lease.resource
    entry = lease._held[0]
    lease.release()
    with pytest.raises(LeaseReleased):
        lease.cancel()
    # In the instant between the look at the lease and the hook:
    assert cancel(entry, lambda: bool(lease._held)) is False
    assert thing.cancelled == 0


def test_a_child_cancels_nothing_of_its_parents(runtime_dir: object) -> None:
    pool = PoolManager("shop").pool("things", Thing, cancel=Thing.stop, max_size=1)
    lease = pool.checkout()

    def in_child() -> bool:
        with pytest.raises(ForkedLease):
            lease.cancel()
        with pytest.raises(LeaseReleased):
            pool.lease_of(lease._held[0].resource)
        return True

    assert Fork(in_child).result()
    lease.release()


@pytest.mark.parametrize("guard", [False, True])
def test_the_lease_of_a_resource_is_found(guard: bool) -> None:
    manager = InProcessManager()
    pool = manager.pool("things", Thing, max_size=3, guard=guard)
    leases = [pool.checkout() for _ in range(3)]
    things = [lease.resource for lease in leases]
    assert [pool.lease_of(thing) for thing in things] == leases
    with pytest.raises(LeaseReleased):
        manager.pool("others", Thing).lease_of(things[0])
    pool.lease_of(things[1]).release()
    assert leases[1].released
    with pytest.raises(LeaseReleased, match="it was given back, or is another pool's"):
        pool.lease_of(things[1])
    for lease in (leases[0], leases[2]):
        lease.release()


def test_within_a_with_block_it_is_found_too() -> None:
    pool = InProcessManager().pool("things", Thing, max_size=1)
    with pool.checkout() as thing:
        pool.lease_of(thing).discard()
    assert thing.closed == 1


class Guarded(Recipe[Thing]):
    guard = True

    def open(self, opening: Opening) -> Thing:
        return Thing()


def test_a_recipe_says_what_no_option_means() -> None:
    manager = InProcessManager()
    with manager.pool("guarded", Guarded(), max_size=1).checkout() as guarded:
        assert type(guarded) is not Thing
    with pytest.raises(LeaseReleased):
        guarded.stop()
    with manager.pool("plain", Guarded(), max_size=1, guard=False).checkout() as plain:
        assert type(plain) is Thing
