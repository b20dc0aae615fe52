"""Resources of an event loop that know what was done to them, and waiting for conditions without blocking the loop."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from mppool import AsyncRecipe, Opening
from tests.helpers import PATIENCE

T = TypeVar("T")


class Thing:
    """Belongs to the loop that made it."""

    numbers = itertools.count(1)

    def __init__(self) -> None:
        self.number = next(self.numbers)
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.abandoned = False
        self.users = 0
        self.resets = 0
        self.checks = 0

    def touch(self) -> None:
        assert asyncio.get_running_loop() is self.loop
        assert not self.closed


class ThingRecipe(AsyncRecipe[Thing]):
    """Opens things, with an await in each hook; `alive` are those that are open now, `most` the most at a time."""

    def __init__(self) -> None:
        self.alive: set[Thing] = set()
        self.most = 0
        self.pause = 0.0

    async def open(self, opening: Opening) -> Thing:
        thing = Thing()
        self.alive.add(thing)
        self.most = max(self.most, len(self.alive))
        await asyncio.sleep(self.pause)
        return thing

    async def close(self, thing: Thing) -> None:
        thing.touch()
        await asyncio.sleep(0)
        thing.closed = True
        self.alive.discard(thing)

    def abandon(self, thing: Thing) -> None:
        thing.abandoned = thing.closed = True
        self.alive.discard(thing)


class CarefulRecipe(ThingRecipe):
    """With all hooks."""

    async def configure(self, thing: Thing) -> None:
        thing.touch()
        await asyncio.sleep(0)

    async def on_checkout(self, thing: Thing) -> None:
        thing.touch()
        await asyncio.sleep(0)

    async def reset(self, thing: Thing) -> None:
        thing.touch()
        thing.resets += 1
        await asyncio.sleep(0)

    async def check(self, thing: Thing) -> bool:
        thing.touch()
        thing.checks += 1
        await asyncio.sleep(0)
        return True


async def until(condition: Callable[[], T], what: str, *, timeout: float = PATIENCE) -> T:
    """Wait for the condition to give something true, while the loop goes on."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {what}")
        await asyncio.sleep(0.002)
    return result


async def take_all(pool: Any, size: int) -> list[Any]:
    """As many leases as the pool has room for: no capacity was lost."""
    return [await pool.checkout(timeout=PATIENCE) for _ in range(size)]
