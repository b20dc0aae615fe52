"""How much of one key the threads of this process want, and when to ask the books for more.

A thread that waits is served by whatever comes first: a neighbour's release, or an opening. Asking the books has
a price, an exchange and perhaps a login that nobody needs any more when it is done. So a thread first hopes:

    nothing of the key is in use here ------------------------> it asks at once
    the line of waiting threads has not been empty for half an
        opening (at most `LONGEST_HOPE_S`) -------------------> it asks

The clock is that of the line: where threads pass one resource round, each waits for a moment only, and the process
wants more all the time. Nobody asks while as much is on its way as threads wait. A ticket is the demand of the process rather than of
one thread: if its thread is served by a neighbour, it stays in the queue for the next one. A ticket for which no
thread waits any more is given up after `SPARE_S`.

Pure: the time is an argument, and nothing here does I/O. The state is guarded by the lock of the inventory.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from mppool.core.sharing import earned_after_s
from mppool.ids import GrantNumber, Ticket

LONGEST_HOPE_S = 0.1
"""No thread hopes for longer before it asks, however much an opening takes."""

GAP_S = 0.005
"""An interval without a waiting thread that is shorter does not interrupt the demand."""

SPARE_S = 0.02
"""A ticket for which no thread waits is kept for so long: the next thread is often there at once."""

SHORTEST_LATE_S = 1.0
LATE_OPENINGS = 3.0
"""An opening that takes longer than so many recent ones, and than a second, is not counted on any longer."""

SHORTEST_STARVATION_S = 1.0
STARVATION_OPENINGS = 2.0
STARVATION_USES = 3.0

"""A key starves where threads wait for it and nothing was given back for so long: see `starves_after_s`."""

SHORTEST_SILENCE_S, LONGEST_SILENCE_S = 1.0, 8.0
"""For so long nobody asks books that have not answered in time, where it can go on without them."""


def hope_s(opening_s: float, left_s: float | None) -> float:
    """For how long a thread hopes for a release before it asks for an opening.

    opening_s: what an opening lately takes. left_s: what is left of the thread's timeout; None: no end.
    """
    hope = min(opening_s / 2, LONGEST_HOPE_S)
    return hope if left_s is None else min(hope, left_s / 2)


def starves_after_s(opening_s: float, use_s: float = 0.0) -> float:
    """After how long without any release for its key a process says that it starves.

    use_s: how long a resource is lately used for. Where uses are long, nothing is given back for long, and that
    is no reason to take anything from others.
    """
    return max(
        SHORTEST_STARVATION_S,
        STARVATION_OPENINGS * earned_after_s(opening_s),
        STARVATION_USES * use_s,
    )


class Demand:
    """What is waited for, asked for, being opened and open, of one key in one process.

    waiting: threads that wait, oldest first. One that has been answered (`is_open` is false) leaves when it wakes up, and
        wants nothing until then. tickets: those that are in the queue of the books, or on their way
        there.
    opening: grants whose resource nobody has got yet, each with the instant until which it is counted on (minus
        infinity: its thread opens it for itself); begun: those of them whose open hook has been called, until they
        have `arrived`.
    open: resources that are open and not being closed.
    streak_since: since when somebody has waited all the time.

    A thread can be interrupted between any two steps. So the number of waiting threads is that of the queue, and
    whatever is left in `opening` by mistake is not counted on for long.
    """

    __slots__ = (
        "_emptied_at",
        "_said_starving_at",
        "_served_at",
        "_spare_since",
        "begun",
        "open",
        "opening",
        "streak_since",
        "tickets",
        "waiting",
    )

    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()
        self.tickets: dict[Ticket, None] = {}  # in the order of asking
        self.opening: dict[GrantNumber, float] = {}
        self.begun: set[GrantNumber] = set()
        self.open: set[GrantNumber] = set()
        self.streak_since = -math.inf
        self._emptied_at = -math.inf
        self._served_at = -math.inf
        self._said_starving_at = -math.inf
        self._spare_since = math.inf

    @property
    def is_void(self) -> bool:
        """Whether nothing of this key is wanted or held."""
        return not (self.waiting or self.tickets or self.opening or self.open)

    # --- threads -----------------------------------------------------------------------------------------

    def begins_to_wait(self, waiter: Any, now: float) -> None:
        """A thread waits."""
        if not self.waiting and now - self._emptied_at > GAP_S:
            self.streak_since = now
        self.waiting.append(waiter)
        self._count_spare(now)

    def stops_waiting(self, waiter: Any, now: float, *, served: bool) -> None:
        """A thread waits no longer. served: it got a resource. Any number of times."""
        waiting = self.waiting
        if waiting and waiting[0] is waiter:  # as most of the time
            waiting.popleft()
        elif waiter in waiting:
            waiting.remove(waiter)
        if not waiting:
            self._emptied_at = now
        if served:
            self._served_at = now
        self._count_spare(now)

    # --- resources ---------------------------------------------------------------------------------------

    def granted(self, number: GrantNumber, opening_s: float, now: float) -> None:
        """A grant has been entered into the table, and will be opened."""
        self.opening[number] = now + max(SHORTEST_LATE_S, LATE_OPENINGS * opening_s)

    def opens_for_itself(self, number: GrantNumber, now: float) -> None:
        """A thread opens in its own hands, and waits no longer: nobody else can count on that opening."""
        if number in self.opening:
            self.opening[number] = -math.inf
            self._count_spare(now)

    def begins(self, number: GrantNumber, now: float, *, insists: bool = False) -> bool:
        """The open hook is about to be called; False if the opening has become needless.

        insists: its thread waits for this opening alone.
        """
        if number not in self.opening:
            return False
        if not insists:
            timely = sum(self.opening[one] > now for one in self.begun) if self.begun else 0
            if not self._want_more_than(timely):
                return False
        self.begun.add(number)
        return True

    def is_late(self, number: GrantNumber, now: float) -> bool:
        """Whether an opening goes on, and is not counted on any longer."""
        return self.late_from(number) <= now

    def late_from(self, number: GrantNumber) -> float:
        """From when on an opening is not counted on any longer; infinity where it has ended."""
        return self.opening.get(number, math.inf)

    def _coming(self, now: float) -> int:
        """How many openings are counted on."""
        coming = 0
        for until in self.opening.values():
            coming += until > now
        return coming

    def opened(self, number: GrantNumber, now: float) -> None:
        """A resource is open."""
        self.open.add(number)
        if number not in self.begun:
            self.opening.pop(number, None)
        self._served_at = max(self._served_at, now)

    def ended(self, number: GrantNumber) -> None:
        """The opening has failed or was given up, or the resource is being closed."""
        self.open.discard(number)
        # Between the end of an opening and the moment in which a thread hears of it, the thread must not ask again.
        if number not in self.begun:
            self.opening.pop(number, None)

    def arrived(self, number: GrantNumber) -> None:
        """What has become of an opening that was begun, a resource or an error, is with a thread or on the shelf."""
        self.opening.pop(number, None)
        self.begun.discard(number)

    # --- asking ------------------------------------------------------------------------------------------

    @property
    def is_one_thread(self) -> bool:
        """Whether nothing of this key is here, or on its way, but one thread that waits."""
        return len(self.waiting) == 1 and not (self.tickets or self.opening or self.open)

    def asks(self, ticket: Ticket) -> None:
        """A ticket is on its way to the books."""
        self.tickets[ticket] = None

    def answered(self, ticket: Ticket) -> None:
        """The books have taken a ticket out of their queue."""
        self.tickets.pop(ticket, None)

    def wants_more(self, now: float) -> bool:
        """Whether more threads wait than resources are on their way."""
        return self._want_more_than(len(self.tickets) + self._coming(now))

    def _want_more_than(self, number: int) -> bool:
        """Whether more than so many threads still wait for an answer."""
        if len(self.waiting) <= number:
            return False
        still = 0
        for one in self.waiting:  # thousands of tasks may wait: only as far as it takes
            still += one.is_open
            if still > number:
                return True
        return False

    def must_ask(self, hope: float, idle: int, now: float) -> bool:
        """Whether a thread asks the books now. hope: how long it may hope. idle: resources on the shelf."""
        if not self.wants_more(now):
            return False
        return len(self.open) <= idle or now >= self.streak_since + hope

    def look_at(self, hope: float, now: float) -> float:
        """When a waiting thread has to look again whether to ask; infinity: when it is told to.

        That may be at once: its hope may have ended since it looked, and more than one ticket may be lacking.
        """
        return self.streak_since + hope if self.wants_more(now) else self.late_at(now)

    def late_at(self, now: float) -> float:
        """When the next opening is not counted on any longer; infinity if none is now."""
        late_at = math.inf
        for until in self.opening.values():
            if now < until < late_at:
                late_at = until
        return late_at

    @property
    def can_go_on(self) -> bool:
        """Whether threads may be served without the books: something is open, or on its way."""
        return bool(self.open or self.opening)

    # --- starving ----------------------------------------------------------------------------------------

    def starves_at(self, since: float, opening_s: float, use_s: float) -> float:
        """When the books are to be told that this key starves here; infinity where nothing was asked.

        While a resource is being opened here, nothing starves.
        """
        if not self.tickets or self.opening:
            return math.inf
        latest = max(since, self._served_at, self._said_starving_at)
        return latest + starves_after_s(opening_s, use_s)

    def says_starving(self, now: float) -> Ticket | None:
        """The books are told now; with which ticket."""
        self._said_starving_at = now
        return next(iter(self.tickets), None)

    # --- tickets that nobody waits for --------------------------------------------------------------------

    def _count_spare(self, now: float) -> None:
        if not self.tickets or (not self.opening and len(self.tickets) <= len(self.waiting)):
            self._spare_since = math.inf  # as most of the time
        elif self._spare(now) <= 0:
            self._spare_since = math.inf
        elif self._spare_since == math.inf:
            self._spare_since = now

    def _spare(self, now: float) -> int:
        tickets = len(self.tickets)
        return min(tickets, tickets + self._coming(now) - len(self.waiting))

    @property
    def has_spare(self) -> bool:
        """Whether there are tickets for which no thread waits."""
        return self._spare_since < math.inf

    def spare_due_at(self) -> float:
        """When tickets are to be given up; infinity while a thread waits for each."""
        return self._spare_since + SPARE_S

    def give_up_spare(self, now: float) -> list[Ticket]:
        """Take out the tickets for which nobody waits, the newest first."""
        spare = list(self.tickets)[len(self.tickets) - max(0, self._spare(now)) :]
        for ticket in spare:
            del self.tickets[ticket]
        self._spare_since = math.inf
        return spare


class Silence:
    """Whether the books have lately not answered in time. Nobody asks for a while then, where it can go on without.

    One for all threads, and used without a lock: what two threads write at one time differs by little.

    until: nobody asks before. While the server is stopped each silence is a short one, so that it is soon seen to go
    on; one that is only slow is given more time at each failure, for every question makes it slower.
    """

    __slots__ = ("_pause_s", "_since", "until")

    def __init__(self) -> None:
        self.until = -math.inf
        self._since = -math.inf
        self._pause_s = 0.0

    def begins(self, asked_at: float, now: float, *, stopped: bool) -> None:
        """What was asked at that instant was not answered. stopped: the server cannot answer."""
        if asked_at <= self._since:
            return  # asked before another thread had found that out
        self._since = now
        self._pause_s = (
            SHORTEST_SILENCE_S
            if stopped or not self._pause_s
            else min(2 * self._pause_s, LONGEST_SILENCE_S)
        )
        self.until = now + self._pause_s

    def ends(self) -> None:
        """The books have answered, or there are others."""
        self.until, self._pause_s = -math.inf, 0.0
