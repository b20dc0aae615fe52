"""How slots move between processes.

Moving a slot costs a close and an open, so it needs a reason. There are three:

- the resource is idle where it is, and has been for a moment (`SURPLUS_IDLE_S`): it is fetched;
- the levels differ by two or more: whoever has the most gives one to a process that waits and has less;
- somebody has lost patience (`PATIENCE_S`): he gets one although the levels are even. With fewer slots
  than busy processes, this is what makes them rotate.

A uniform load therefore moves nothing: levels even out once, and no resource is idle for long where
somebody waits. Only functions here; the state is that of `PoolBooks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mppool.ids import ProcessId

if TYPE_CHECKING:
    from mppool.core.waiting import Waiter

PATIENCE_S = 0.1
"""A waiter that has waited longer is served although its process has its fair share."""

SURPLUS_IDLE_S = 0.01
"""A resource idle for longer, while somebody elsewhere waits, is surplus."""

FIRST_LOOK_S = 0.02
LONGEST_LOOK_S = 0.2
"""While somebody waits, surplus is looked for at doubling intervals between these."""

ANSWER_S = 0.1
"""A process that has not brought back what it was asked for by then is not counted on any longer, nor is a
resource that has not been closed by then (rule 7). One that brought back what helped nobody is left in
peace for as long."""


def has_lost_patience(waiter: Waiter, now: float) -> bool:
    """Whether the waiter has waited for `PATIENCE_S`."""
    return now >= waiter.since + PATIENCE_S


def rank(waiter: Waiter, levels: Mapping[ProcessId, int], now: float) -> tuple[int, int, float]:
    """The lowest gets the next slot: whoever lost patience first, then the poorest process, then the oldest.

    levels: slots that each process has.
    """
    if has_lost_patience(waiter, now):
        return (0, 0, waiter.since)
    return (1, levels.get(waiter.process, 0), waiter.since)


def least_fair_level(taker_level: int) -> int:
    """How many slots a process must have to give one to another that waits: it stays at least as rich."""
    return taker_level + 2


def moving_is_fair(giver_level: int, taker_level: int) -> bool:
    """Whether a slot may move from one process to another that waits."""
    return giver_level >= least_fair_level(taker_level)


def rival_prevails(rival: Waiter, home: Waiter, giver_level: int, taker_level: int) -> bool:
    """Whether a slot that was brought back goes to `rival` although `home`, in the same process, wants it.

    Keeping it at home is cheaper, so a rival of an equally rich process must have waited longer by
    `PATIENCE_S`.
    """
    if rival.process != home.process and moving_is_fair(giver_level, taker_level):
        return True
    return rival.since + PATIENCE_S <= home.since
