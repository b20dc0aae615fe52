"""When the background thread of a process looks around."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mppool.worker.housekeeping import Housekeeper
from mppool.worker.inventory import NEVER


class Brief:
    """Wants to be looked at at an instant, and is over just after it has said so."""

    def __init__(self, due: float) -> None:
        self.due = due

    def look(self, now: float) -> float:
        return self.due

    def is_over(self) -> bool:
        return True


def test_what_a_keeper_wanted_is_forgotten_with_it() -> None:
    """A check that ends in the instant in which it is looked after. The thread woke without end, from its limit on."""
    nothing = SimpleNamespace(look=lambda now: NEVER)
    context: Any = SimpleNamespace(
        name="t",
        link=SimpleNamespace(ensure_thread=lambda: None),
        wake=lambda: None,
        chores=nothing,
        openers=nothing,
    )
    housekeeper = Housekeeper(context, {})
    housekeeper.look_after(Brief(11.0))
    housekeeper.run(10.0)
    left = housekeeper.seconds_left(10.0)
    assert left is None or left <= 1.0
    housekeeper.run(12.0)
    assert housekeeper.seconds_left(12.0) is None
