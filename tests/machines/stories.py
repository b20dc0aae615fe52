"""What happens to machines that share a cap, by a seed: every kind of trouble, then calm, in which nobody may starve."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from tests.machines.simulation import SimulatedMachine, Story, World


class Told(NamedTuple):
    """How a story ended. seconds: of simulated time. troubles: how often each kind has happened."""

    seed: int
    seconds: float
    calls: int
    peak: int
    cap: int
    troubles: Counter[str]


class Starved(AssertionError):
    """In calm times somebody has not what is due to it."""


def machines(world: World, count: int) -> list[SimulatedMachine]:
    return [SimulatedMachine(world, f"m{number}", pace=world.pace()) for number in range(count)]


def heal(world: World, demand: list[int]) -> Story[None]:
    """All is well again, for six leases."""
    world.loss = 0.0
    for machine, wanted in zip(world.machines, demand, strict=True):
        machine.is_cut_off = False
        if not machine.alive:
            machine.returns()
        machine.wants(wanted)
    yield from world.run(world.timing.lease_s * 6)


def story(seed: int, troubles: int = 40) -> Story[Told]:
    """Trouble upon trouble, then calm."""
    world = World(cap=6, seed=seed)
    chance = world.random
    world.cap = chance.choice([1, 3, 6, 6, 12])
    these = machines(world, chance.randrange(2, 5))
    world.loss = 0.3
    happened: Counter[str] = Counter()
    for _ in range(troubles):
        happened[(yield from trouble(world))] += 1
        for _ in range(chance.randrange(12)):
            chance.choice(these).wants(chance.choice([0, 1, world.cap, world.cap]))
            yield from world.run(chance.expovariate(1))
    yield from calm(world)
    return Told(seed, world.now, world.calls, world.peak, world.cap, happened)


def crowd(machines_: int, seconds: float, seed: int = 1) -> Story[tuple[float, float]]:
    """Calls per second of so many machines, with two resources for each: where all have enough, and where load moves around."""
    world = World(cap=2 * machines_, seed=seed, lent_s=1.0)
    these = machines(world, machines_)
    for machine in these:
        machine.wants(1)
    yield from world.run(4 * world.timing.lease_s)
    rates = []
    for moves in (False, True):
        before, began = world.calls, world.now
        while world.now < began + seconds:
            if moves:  # a tenth of them wants more than its part, and another tenth nothing
                for machine in world.random.sample(these, machines_ // 5 or 1):
                    machine.wants(world.random.choice((0, 6)))
            yield from world.run(world.timing.refresh_s)
        rates.append((world.calls - before) / (world.now - began))
    return rates[0], rates[1]


def calm(world: World) -> Story[None]:
    """Everybody has its share, and one that wants all gets all."""
    these, cap = world.machines, world.cap
    yield from heal(world, [20] * len(these))
    held = [machine.sessions() for machine in these]
    if cap >= len(these) and (sum(held) != cap or max(held) - min(held) > 1):
        raise Starved(f"seed {world.seed}: of {cap} they have {held}")
    yield from heal(world, [0] * len(these))
    yield from heal(world, [cap] + [0] * (len(these) - 1))
    if these[0].sessions() != cap:
        raise Starved(f"seed {world.seed}: one that wants {cap} has {these[0].sessions()}")


def trouble(world: World) -> Story[str]:
    """One thing goes wrong, or changes; its name."""
    chance = world.random
    machine = chance.choice(world.machines)
    kind = chance.choice(
        ["flush", "fail over", "forget", "forget", "loss", "cut", "cut", "death", "server", "server", "file"]
    )  # fmt: skip
    if not machine.alive and kind in ("death", "server", "file"):
        kind = "return"
    if kind == "flush":
        yield from world.flush()
    elif kind == "fail over":
        yield from world.fail_over()
    elif kind == "forget":
        yield from world.fail_over(forgotten=chance.randrange(1, 15))
    elif kind == "loss":
        world.loss = chance.choice([0.0, 0.1, 0.3, 0.5, 1.0])
    elif kind == "cut":
        machine.is_cut_off = not machine.is_cut_off
    elif kind == "death":
        machine.dies()
    elif kind == "return":
        machine.returns()
    else:
        machine.restarts_server(forgets=kind == "file")
    return kind
