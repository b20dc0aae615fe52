"""What the script answers, call by call. The time, and which Redis it is, are arguments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from mppool.machines.calling import key_of
from mppool.machines.needs import PoolSaid, Said, Told
from mppool.machines.script import SCRIPT
from tests.machines.redis_server import RedisServer

LEASE_MS = 15_000
_names = itertools.count()


class Table:
    """A key of its own, and machines that talk to it. `now` is in milliseconds."""

    def __init__(self, server: RedisServer) -> None:
        self.client = server.client()
        self.key = key_of(f"test{next(_names)}")
        self.script = self.client.register_script(SCRIPT)
        self.now, self.instance = 1_000_000, "one"
        self.numbers: dict[str, int] = {}
        self.last: dict[str, Told] = {}

    def say(self, machine: str, cap: int, wants: int, has: int, limit: int, **more: Any) -> Told:
        self.numbers[machine] = self.numbers.get(machine, 0) + 1
        seen = self.last.get(machine)
        said = Said(
            machine=machine, epoch=1, number=self.numbers[machine], lease_ms=LEASE_MS,
            incarnation=seen.incarnation if seen else "", version=seen.version if seen else 0,
            fresh=f"{machine}{self.numbers[machine]}", label=machine, processes=2,
            pools=[PoolSaid("orders", cap, wants, has, limit)],
        )  # fmt: skip
        told = self.send(msgspec.structs.replace(said, **more))
        self.last[machine] = told
        return told

    def send(self, said: Said) -> Told:
        call = msgspec.json.encode(said)
        answer = self.script(keys=[self.key], args=[call, self.now, self.instance])
        return msgspec.json.decode(answer, type=Told)

    def share(self, *arguments: Any) -> int:
        return self.say(*arguments).pools[0].share

    def settle(self) -> None:
        """The first incarnation has begun, and its lease has passed."""
        self.say("nobody", 0, 0, 0, 0)
        self.now += LEASE_MS + 1


@pytest.fixture
def table(any_redis: RedisServer) -> Iterator[Table]:
    one = Table(any_redis)
    yield one
    one.client.close()


@pytest.fixture
def settled(table: Table) -> Table:
    table.settle()
    return table


def test_in_an_empty_redis_nobody_gets_anything_for_one_lease(table: Table) -> None:
    told = table.say("a", 6, 6, 0, 0)
    assert (told.pools[0].share, told.kept_ms, told.why) == (0, LEASE_MS, "it was empty")
    table.now += LEASE_MS
    assert table.share("a", 6, 6, 0, 0) == 6


def test_what_nobody_wants_is_spread_as_headroom(settled: Table) -> None:
    assert settled.share("a", 6, 1, 0, 0) == 6
    settled.share("b", 6, 0, 0, 0)
    assert settled.share("a", 6, 1, 0, 6) == 4  # one wanted, and of five that nobody wants three


def test_shares_are_max_min_over_what_is_wanted_and_only_out_of_what_is_free(
    settled: Table,
) -> None:
    assert settled.share("a", 6, 6, 6, 0) == 6 - 0
    assert settled.share("b", 6, 6, 0, 0) == 0  # all is taken
    assert settled.share("a", 6, 6, 6, 6) == 3  # told so
    assert settled.share("b", 6, 6, 0, 0) == 0  # but not closed yet
    assert settled.share("a", 6, 6, 4, 3) == 3
    assert settled.share("b", 6, 6, 0, 0) == 2
    assert settled.share("a", 6, 6, 3, 3) == 3
    assert settled.share("b", 6, 6, 2, 2) == 3
    assert settled.share("c", 6, 1, 0, 0) == 0


def test_a_share_that_is_lowered_counts_until_its_machine_has_said_that_it_knows(
    settled: Table,
) -> None:
    settled.share("a", 6, 0, 0, 0)
    settled.share("b", 6, 6, 0, 0)
    assert settled.share("a", 6, 0, 0, 6) == 0  # this answer is lost: a may still open six
    assert settled.share("b", 6, 6, 0, 0) == 0
    settled.share("a", 6, 0, 0, 0)
    assert settled.share("b", 6, 6, 0, 0) == 6


def test_a_call_that_comes_late_is_void(settled: Table) -> None:
    import redis

    settled.share("a", 6, 0, 0, 0)
    with pytest.raises(redis.ResponseError, match="MPPOOL a later call"):
        settled.say("a", 6, 0, 0, 0, number=1)
    with pytest.raises(redis.ResponseError, match="MPPOOL a later call"):
        settled.say("a", 6, 0, 0, 0, epoch=0)


def test_the_share_of_a_machine_that_is_silent_is_free_after_its_lease(settled: Table) -> None:
    settled.share("a", 6, 6, 6, 0)
    settled.now += LEASE_MS - 1
    assert settled.share("b", 6, 6, 0, 0) == 0
    settled.now += 1
    assert settled.share("b", 6, 6, 0, 0) == 6


def test_a_machine_that_leaves_gives_its_share_back_at_once(settled: Table) -> None:
    settled.share("a", 6, 6, 6, 0)
    settled.say("a", 6, 0, 0, 0, leaves=True, pools=[])
    assert settled.share("b", 6, 6, 0, 0) == 6


@pytest.mark.parametrize("kind", ["flushed", "failed over", "forgotten", "restored"])
def test_after_redis_may_have_forgotten_something_all_keep_what_they_have_for_one_lease(
    settled: Table, kind: str
) -> None:
    settled.share("a", 6, 4, 0, 0)
    before = settled.client.dump(settled.key)
    settled.share("b", 6, 2, 0, 0)
    settled.share("a", 6, 4, 4, 6)
    settled.share("b", 6, 2, 0, 0)
    assert settled.share("a", 6, 4, 4, 4) == 4
    caller = "new"
    if kind == "flushed":
        settled.client.delete(settled.key)
    elif kind == "failed over":
        settled.instance = "two"
    elif kind == "forgotten":
        settled.client.restore(settled.key, 0, before, replace=True)
        caller = "a"
    else:
        settled.client.delete(settled.key)
        settled.settle()
        caller = "a"
    share = settled.share(caller, 6, 6, 4 if caller == "a" else 0, 4 if caller == "a" else 0)
    assert share == (4 if caller == "a" else 0)
    assert settled.last[caller].kept_ms == LEASE_MS
    assert settled.share("newcomer", 6, 6, 0, 0) == 0
    settled.now += LEASE_MS - 1
    assert settled.share("newcomer", 6, 6, 0, 0) == 0
    assert settled.share("a", 6, 6, 4, 4) == 4
    settled.now += 1
    assert settled.share("newcomer", 6, 6, 0, 0) == 2


def test_where_machines_say_different_caps_the_least_holds(settled: Table) -> None:
    settled.share("a", 4, 4, 0, 0)
    assert settled.share("b", 9, 9, 0, 0) == 0
    told = settled.last["b"].pools[0]
    assert (told.cap, told.wanted) == (4, 13)


def test_a_pool_without_a_cap_is_not_shared(settled: Table) -> None:
    assert settled.share("a", -1, 4, 0, 0) == -1


def test_a_machine_that_has_declared_nothing_yet_is_answered(settled: Table) -> None:
    told = settled.say("a", 0, 0, 0, 0, pools=[])
    assert (told.machines, told.processes, told.pools) == (1, 2, [])


def test_of_a_pool_that_nobody_has_declared_again_yet_what_is_open_stays(settled: Table) -> None:
    settled.share("a", 6, 2, 2, 0)
    settled.share("b", 6, 6, 0, 0)
    assert settled.share("a", -2, 0, 2, 2) == 2
    assert settled.share("b", 6, 6, 0, 0) == 4


def test_of_a_machine_whose_lease_has_run_out_the_others_are_told(settled: Table) -> None:
    settled.say("a", 6, 6, 6, 0, epochs=[16, 17], label="web-3")
    settled.say("old", 6, 0, 0, 0)  # an earlier release, which says no epochs
    settled.now += LEASE_MS + 5
    told = settled.say("b", 6, 6, 0, 0, epochs=[1])
    (one,) = told.ended
    assert (one.machine, one.label, one.epochs, one.ago_ms) == ("a", "web-3", [16, 17], 5)
    assert not settled.say("a", 6, 0, 0, 0, epochs=[17]).ended  # it is back, and knows by itself
    settled.now += LEASE_MS - 1
    assert [one.ago_ms for one in settled.say("b", 6, 6, 0, 0).ended] == [LEASE_MS + 4]
    settled.now += 3 * LEASE_MS
    assert "a" not in {
        one.machine for one in settled.say("c", 6, 0, 0, 0).ended if one.ago_ms > LEASE_MS * 4
    }


def test_a_later_call_that_is_refused_forgets_nobody(settled: Table) -> None:
    import redis

    settled.say("a", 6, 6, 6, 0, epochs=[17], label="web-3")
    settled.now += LEASE_MS // 2
    settled.say("b", 6, 0, 0, 0)
    settled.now += LEASE_MS // 2 + 1
    with pytest.raises(redis.ResponseError, match="MPPOOL a later call"):
        settled.say("b", 6, 0, 0, 0, epoch=0)
    assert [one.label for one in settled.say("b", 6, 0, 0, 0).ended] == ["web-3"]
