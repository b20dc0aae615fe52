"""The table of clients alone: when it lets go, and who hears of that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from mppool.azure.client_table import Clients


class Member:
    """What the table uses of a process. `chores`: for the test to do; `woken`: how often."""

    def __init__(self) -> None:
        self.housekeeper = self.chores = self
        self.to_do: list[Callable[[], None]] = []
        self.woken = 0

    def look_after(self, keeper: Clients) -> None:
        """The test looks itself."""

    def add(self, chore: Callable[[], None]) -> None:
        self.to_do.append(chore)

    def wake(self) -> None:
        self.woken += 1


class Pool:
    name = "pool"


class Transport:
    """Whose end is the wire's."""


class Wire:
    serial, ended, loop = 0, "", None

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("first", ["pool", "transport"])
def test_the_thread_is_woken_when_the_last_wire_of_a_dropped_pool_is_closed(first: str) -> None:
    """Else it would keep the table until something else wakes it: when it looks, the wire is still being closed."""
    member: Any = Member()
    wire: Any = Wire()
    things: dict[str, Any] = {"pool": Pool(), "transport": Transport()}
    table = Clients(things["pool"], member)
    table.watch(things["transport"], wire, None)
    del things[first]
    assert member.woken == 1
    table.look(0.0)
    assert not table.is_over()
    things.clear()
    assert member.woken == 2
    assert table.look(0.0) == math.inf
    assert not table.is_over()  # and the thread sleeps from now on
    for chore in member.to_do:
        chore()
    assert wire.closed
    assert table.is_over()
    assert member.woken > 2


def test_the_thread_is_woken_when_the_table_of_a_pool_that_was_reset_is_empty() -> None:
    member: Any = Member()
    wire: Any = Wire()
    pool, transport = Pool(), Transport()
    table = Clients(pool, member)  # type: ignore[arg-type]
    table.watch(transport, wire, None)
    table.end("reset")
    assert wire.closed
    assert table.is_over()
    assert member.woken == 1
