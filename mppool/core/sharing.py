"""How slots move between processes: the measures that `returns` and `reclaim` go by.

Moving a slot costs a close and an open. What an opening lately takes is measured (`OpeningTimes`), and decides.
A slot is given up for one of two reasons:

- it lies idle, for half of what an opening takes (`surplus_after_s`), while somebody elsewhere waits;
- it has earned its opening: it has been open for `EARNED_OPENINGS` times as long as an opening takes, and the
  one that waits has a claim to it. A process has a claim if it has at least two slots fewer, or none at all,
  or if a waiter of it starves.

So a uniform load moves nothing, however slow a login is: levels even out once, and equals do not exchange. Where
there are fewer slots than busy processes, those rotate. Then the part 1 / (1 + EARNED_OPENINGS) of the time is
spent on moving, a seventh. The argument is in docs/decisions/0012-slots-earn-their-move.md.
"""

from __future__ import annotations

from collections import OrderedDict

from mppool.core.slot import Slot

EARNED_OPENINGS = 6.0
"""A slot has earned its opening after so many times the duration of an opening."""

EARNED_BY_THE_RICH = 2.0
"""The same for a slot of a process with two or more, where one without any waits: that evens out once for all."""

UNKNOWN_OPENING_S = 0.05
"""What an opening is taken to cost before one has been measured: after a restart of the server, mostly."""

SHORTEST_SURPLUS_S = 0.01
"""A resource that has been idle for less is never surplus, however cheap an opening is."""

SURPLUS_OPENINGS = 0.5
"""A resource is surplus when it has been idle for this part of the duration of an opening."""

SHORTEST_LOAN_S = 0.1
LOAN_OPENINGS = 2.0
"""Where a pool has lanes, what lies idle goes to another process when it has been idle for so long, and for so many
openings: its lane may want it back at once, and the loan has cost two openings then."""

FIRST_LOOK_S = 0.02
LONGEST_LOOK_S = 0.2
"""While somebody waits, surplus is looked for at doubling intervals between these."""

ANSWER_S = 0.1
"""A process that has not brought back what it was asked for by then is not counted on any longer. A resource that has
not been closed by then is not either (rule 7). A process that brought back what helped nobody is left in peace for
as long."""

MOST_TRIED = 2
"""So many unrestricted waiters are tried: if they have no claim, no waiter further down the line has one."""

MOST_UNEARNED = 3
"""Of the richest processes so many are looked at that have no slot to give yet; then the oldest slots are."""

MOST_MEASURED_KEYS = 1000
"""Opening times are kept for so many keys; the least recently opened is forgotten first."""

_WEIGHT = 0.3
"""Of the newest opening in the running mean."""


class OpeningTimes:
    """What opening a resource lately takes, in seconds: running means, per key and over all keys.

    least: of all keys, and of `UNKNOWN_OPENING_S`.
    """

    def __init__(self) -> None:
        self.least = UNKNOWN_OPENING_S
        self._overall: float | None = None
        self._by_key: OrderedDict[str, float] = OrderedDict()

    def note(self, key: str, seconds: float) -> None:
        """An opening for this key took so long."""
        known = self._by_key.pop(key, None)
        before = seconds if known is None else known
        self._by_key[key] = before + _WEIGHT * (seconds - before)
        if known is not None and known <= self.least:
            self.least = min(UNKNOWN_OPENING_S, *self._by_key.values())
        self.least = min(self.least, self._by_key[key])
        if len(self._by_key) > MOST_MEASURED_KEYS:
            self._by_key.popitem(last=False)
        overall = seconds if self._overall is None else self._overall
        self._overall = overall + _WEIGHT * (seconds - overall)

    def of(self, key: str) -> float:
        """What an opening for this key takes, as far as anybody knows."""
        known = self._by_key.get(key, self._overall)
        return UNKNOWN_OPENING_S if known is None else known

    def earned_at(self, slot: Slot, *, evens_out: bool) -> float:
        """When an open slot has been open for several times as long as an opening takes.

        evens_out: it would go from a process with several slots to one that has nothing.
        """
        return slot.opened_at + earned_after_s(self.of(slot.key), evens_out=evens_out)

    def measured(self) -> float:
        """Over all keys; 0 before anything was measured."""
        return self._overall or 0.0


def earned_after_s(opening_s: float, *, evens_out: bool = False) -> float:
    """How long a slot stays where it was opened, unless it lies idle. evens_out: see `evens_out`."""
    return (EARNED_BY_THE_RICH if evens_out else EARNED_OPENINGS) * opening_s


def evens_out(giver_level: int, taker_level: int) -> bool:
    """Whether a slot goes from a process with several to one that has nothing."""
    return taker_level <= 0 and giver_level >= 2


def surplus_after_s(opening_s: float, *, is_reserve: bool = False) -> float:
    """How long a resource must lie idle before it is given to another process that waits.

    is_reserve: its lane may take it back as soon as it is wanted, for another opening.
    """
    if is_reserve:
        return max(SHORTEST_LOAN_S, LOAN_OPENINGS * opening_s)
    return max(SHORTEST_SURPLUS_S, SURPLUS_OPENINGS * opening_s)


def rank(level: int, level_of_key: int, since: float) -> tuple[int, int, float]:
    """The lowest gets the next slot: of the poorest process; there, of the poorest identity; then the longest wait.

    level: slots that the process has. level_of_key: those of them that are for the key of the waiter. So an identity
    that asks for much comes after one that has nothing, however early it asked.
    since: when the waiter came, or when its process gave a slot to another one.
    A waiter that starves has the rank of one in a process without slots, from when its process said so.
    """
    return (level, level_of_key, since)


def least_giving_level(taker_level: int, *, starves: bool) -> int:
    """How many slots a process must have to give one that has earned its opening to one that waits.

    With one exception the giver stays as rich as the taker becomes, so nothing moves back. Where the taker has
    nothing, or starves, the two take turns.
    """
    return 1 if starves or taker_level <= 0 else taker_level + 2
