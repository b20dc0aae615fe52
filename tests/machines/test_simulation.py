"""Machines share a cap in simulated time, over the real script: it is never exceeded, and nobody starves in the end.

This is a short share of what `python -m tests.machines.hours` does for a hundred hours from a random seed.
"""

from __future__ import annotations

import pytest

from tests.machines.redis_server import RedisServer
from tests.machines.simulation import Story, World, drive
from tests.machines.stories import heal, machines, story

SEEDS = range(16)


def tell(server: RedisServer, one: Story[None]) -> None:
    client = server.client()
    assert list(drive(client, [one])) == [None]
    client.close()


def test_whatever_happens_the_cap_holds_and_nobody_starves_after_it(any_redis: RedisServer) -> None:
    client = any_redis.client()
    told = list(drive(client, map(story, SEEDS)))
    client.close()
    assert len(told) == len(SEEDS)
    # It was worth while: what may go wrong did, and all of the cap was in use.
    assert sum(one.seconds for one in told) > 1.5 * 3600
    assert len(sum((one.troubles for one in told), told[0].troubles)) == 9
    assert all(one.peak == one.cap for one in told)


@pytest.mark.parametrize("seed", range(8))
def test_capacity_moves_to_where_the_load_is_within_two_refreshes(
    any_redis: RedisServer, seed: int
) -> None:
    world = World(cap=6, seed=seed, lent_s=0.0)  # what is not needed any more has been given back

    def load_moves() -> Story[None]:
        first, second = machines(world, 2)
        yield from heal(world, [6, 0])
        assert (first.sessions(), second.sessions()) == (6, 0)
        first.wants(0)
        second.wants(6)
        # By the slower clock; and what a login and the way to Redis take.
        yield from world.run(2 * world.timing.refresh_s / 0.9 + world.timing.lease_s * 0.15 + 0.5)
        assert (first.sessions(), second.sessions()) == (0, 6)

    tell(any_redis, load_moves())


def test_the_share_of_a_dead_machine_is_back_within_its_lease(any_redis: RedisServer) -> None:
    world = World(cap=6, seed=2)

    def one_dies() -> Story[None]:
        first, second = machines(world, 2)
        yield from heal(world, [6, 6])
        assert (first.sessions(), second.sessions()) == (3, 3)
        first.dies()
        yield from world.run(world.timing.lease_s / 0.9 + 2 * world.timing.refresh_s)
        assert second.sessions() == 6

    tell(any_redis, one_dies())


def test_more_machines_than_slots_take_turns(any_redis: RedisServer) -> None:
    world = World(cap=2, seed=3)
    served: set[str] = set()

    def turns() -> Story[None]:
        these = machines(world, 3)
        yield from heal(world, [1, 1, 1])
        for _ in range(60):
            yield from world.run(world.timing.refresh_s)
            served.update(machine.name for machine in these if machine.sessions())

    tell(any_redis, turns())
    assert served == {"m0", "m1", "m2"}
