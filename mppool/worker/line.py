"""The threads of one process that wait for resources of one pool, and what the books are asked on their behalf."""

from __future__ import annotations

import math
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from mppool.core.events import Abandoned
from mppool.process.waiter import LocalWaiter, give_to_oldest, wake_oldest
from mppool.worker.demand import LONGEST_HOPE_S, Demand, hope_s

if TYPE_CHECKING:
    from mppool.core.decisions import Grant
    from mppool.ids import GrantNumber, Ticket
    from mppool.options import PoolOptions
    from mppool.worker.context import Context
    from mppool.worker.durations import Durations
    from mppool.worker.inventory import Inventory


class Shelved(Protocol):
    """What lies idle in the pool, as far as its line has to know: see Idle."""

    attention: bool
    contended: bool
    settled: str | None

    def lying(self, key: str) -> int:
        """How many resources of a key lie idle."""

    def forget(self, key: str) -> None:
        """Keep nothing of a key where nothing of it is left. Caller holds the inventory's lock."""

    def look_whether_attention(self) -> None:
        """Threads have begun, or stopped, to wait. Caller holds the inventory's lock."""

    def nobody_waits(self, key: str) -> None:
        """The last thread that waited for a key has left."""


class Line:
    """Waiting threads and their demand, by key. A forked child starts with an empty one.

    The queues change under the inventory's lock only. A thread that gives goes through a copy without it, because a waiter
    decides by itself whether it still takes what it is given. The demands are guarded by the same lock.

    waiters: the queues that are not empty. demands: what is waited for, asked for and held. There may be one for each
        of thousands of identities, so nothing that is done often goes through all of them.
    _asked: of each ticket that the books have, or are about to have, the key.
    _spare: keys that may have tickets for which no thread waits.
    elsewhere: what other machines have to do with it that somebody waits, as the books said last.
    asks_at_once: where the books must know of every thread that waits, none hopes.
    by_ticket: where there are lanes, what the books grant is for the thread with that ticket alone. Only those of a lane
        that is settled hope.
    """

    def __init__(
        self,
        context: Context,
        inventory: Inventory,
        options: PoolOptions,
        durations: Durations,
        idle: Shelved,
    ) -> None:
        self._context = context
        self._inventory = inventory
        self._idle = idle
        self._max_size = options.max_size
        self.elsewhere = ""
        self.by_ticket = options.lanes is not None
        self._may_hope_in_lane = self.by_ticket and options.max_waiting is None
        self.asks_at_once = options.max_waiting is not None or self.by_ticket
        self.waiters: dict[str, deque[LocalWaiter]] = {}
        self.demands: dict[str, Demand] = {}
        self._asked: dict[Ticket, str] = {}
        self._spare: set[str] = set()
        self._durations = durations

    def give_to(self, key: str, ticket: int, answer: Any) -> bool:
        """Give to the waiter with this ticket, else to the oldest of this key; False if nobody waits."""
        queue = self.waiters.get(key)
        if not queue:
            return False
        for waiter in list(queue):
            if waiter.ticket == ticket and waiter.give(answer):
                return True
        return not self.by_ticket and give_to_oldest(queue, answer)

    def demand_for(self, key: str) -> Demand:
        """What this process wants and holds of a key. Caller holds the inventory's lock."""
        demand = self.demands.get(key)
        if demand is None:
            demand = self.demands[key] = Demand()
        return demand

    def is_void(self, key: str) -> bool:
        """Whether nothing of a key is wanted or held. Caller holds the inventory's lock."""
        demand = self.demands.get(key)
        return demand is None or demand.is_void

    def forget(self, key: str) -> None:
        """Nothing of a key is wanted or held any more. Caller holds the inventory's lock."""
        self.demands.pop(key, None)
        self._spare.discard(key)

    def can_go_on(self, key: str) -> bool:
        """Whether threads may be served without the books; a hint, taken without the lock."""
        demand = self.demands.get(key)
        return demand is not None and demand.can_go_on

    # --- what becomes of resources: see Home. Caller holds the inventory's lock. -------------------------------

    def granted(self, grant: Grant, now: float) -> None:
        """A grant is in the table, and will be opened."""
        self._durations.told(grant)
        if grant.ticket in self._asked:
            self.answered(grant.ticket)
        self.demand_for(grant.key).granted(grant.number, self._durations.opening_s, now)

    def opened(self, key: str, number: GrantNumber, seconds: float, now: float) -> None:
        """A resource is open."""
        self.demand_for(key).opened(number, now)
        self._durations.opened(seconds)

    def ended(self, key: str, number: GrantNumber) -> None:
        """The opening has failed or was given up, or the resource is being closed, or gone."""
        demand = self.demands.get(key)
        if demand is not None:
            demand.ended(number)

    def opens_for(self, key: str) -> bool:
        """Whether something of this key is being opened here; a hint, taken without the lock."""
        demand = self.demands.get(key)
        return demand is not None and bool(demand.opening)

    def enqueue(self, waiter: LocalWaiter) -> None:
        """From now on releases look for this waiter."""
        key = waiter.key
        with self._inventory.lock:
            demand = self.demand_for(key)
            self.waiters[key] = demand.waiting
            demand.begins_to_wait(waiter, waiter.since)
            if self._spare:
                self._note_spare(key, demand)
            if not self._idle.attention:
                self._idle.look_whether_attention()

    def dequeue(self, waiter: LocalWaiter, *, served: bool) -> None:
        """The waiter has been answered or has given up. served: it was given a resource."""
        key = waiter.key
        with self._inventory.lock:
            demand = self.demand_for(key)
            demand.stops_waiting(waiter, monotonic(), served=served)
            has_ticket = self.by_ticket and waiter.ticket in demand.tickets
            if has_ticket:  # it is for nobody else
                self._inventory.tell(Abandoned(waiter.ticket))
                self.answered(waiter.ticket)
                self._have_newest_ask(demand)
            due = self._note_spare(key, demand) if demand.has_spare else math.inf
            is_last = not demand.waiting
            if is_last:
                self.waiters.pop(key, None)
                self._idle.forget(key)
                self._idle.look_whether_attention()
            elif self._idle.lying(key):
                wake_oldest(demand.waiting)  # this one may have been woken for what lies there
            elif demand.opening:
                self._have_one_look(demand)  # this one may have been the one that does
        if has_ticket:
            self._context.link.flush()
        if is_last:
            self._idle.nobody_waits(key)
        if due < math.inf:
            self._give_up_spare_later(due)

    # --- asking ------------------------------------------------------------------------------------------

    def must_ask(self, waiter: LocalWaiter, left_s: float | None) -> bool:
        """Whether a waiting thread has to ask the books now; then its ticket counts as sent.

        left_s: of its timeout, when it began to wait.
        """
        if waiter.insists:  # it has been granted what it waits for
            return False
        with self._inventory.lock:
            demand = self.demand_for(waiter.key)
            # Where nothing is here but this thread, there is nothing to hope for.
            is_alone = demand.is_one_thread and waiter.opening is None and waiter.is_open
            if not is_alone and not self._is_due(demand, waiter, left_s):
                return False
            if waiter.asked:  # its ticket was used up, by a neighbour or by a failure
                waiter.ticket = self._context.next_ticket()
            waiter.asked = True
            self._asked[waiter.ticket] = (
                waiter.key
            )  # first: a ticket without it would count for ever
            demand.asks(waiter.ticket)
            return True

    def _hopes_until(self, demand: Demand, waiter: LocalWaiter, left_s: float | None) -> float:
        """Until when a waiter of a settled lane hopes for its neighbours. Caller holds the inventory's lock.

        One of them has asked, or soon does: the books must know that more is wanted here.
        """
        is_settled = self._may_hope_in_lane and waiter.lane == self._idle.settled
        if not is_settled or waiter.asked or len(demand.open) <= self._idle.lying(waiter.key):
            return -math.inf
        since = waiter.since if demand.tickets else demand.streak_since
        return since + hope_s(self._durations.opening_s, left_s)

    def _is_due(self, demand: Demand, waiter: LocalWaiter, left_s: float | None) -> bool:
        """Whether a thread has hoped for long enough. Caller holds the inventory's lock."""
        now = monotonic()
        if not self._may_ask(demand, waiter, now):
            return False
        if demand.can_go_on and now < self._context.silence.until:
            return False
        if now < self._hopes_until(demand, waiter, left_s):
            return False
        if waiter.asked or not (waiter.opens_here or self.asks_at_once):
            hope = 0.0 if self._idle.contended else hope_s(self._durations.opening_s, left_s)
            return demand.must_ask(hope, self._idle.lying(waiter.key), now)
        return True

    def _may_ask(self, demand: Demand, waiter: LocalWaiter, now: float) -> bool:
        """Whether a thread could ask, if more is wanted. Caller holds the inventory's lock."""
        if waiter.insists or not waiter.is_open or self._is_asked_for(demand, waiter):
            return False
        # If its opening fails, it is to hear why, and not to ask before that.
        return waiter.opening is None or demand.is_late(waiter.opening, now)

    def look_at(self, waiter: LocalWaiter, left_s: float | None) -> float:
        """When a waiting thread has to look around again, unless it is poked; infinity: no need."""
        if waiter.insists:  # it has been granted what it waits for
            return math.inf
        with self._inventory.lock:
            demand = self.demand_for(waiter.key)
            if waiter.opening is not None and not self.asks_at_once:
                late = demand.late_from(waiter.opening)
                if monotonic() + LONGEST_HOPE_S < late < math.inf:  # before that it may not ask
                    waiter.looks_at = max(late, self._context.silence.until)
                    return waiter.looks_at
            waiter.looks_at = demand.starves_at(
                waiter.since, self._durations.opening_s, self._durations.use_s
            )
            if not self._is_asked_for(demand, waiter):
                hope = hope_s(self._durations.opening_s, left_s)
                asks_at = demand.look_at(hope, monotonic())
                asks_at = max(asks_at, self._hopes_until(demand, waiter, left_s))
                if waiter.opening is not None:  # before that it may not ask, see `_may_ask`
                    asks_at = max(asks_at, demand.late_from(waiter.opening))
                if demand.can_go_on:
                    asks_at = max(asks_at, self._context.silence.until)
                waiter.looks_at = min(waiter.looks_at, asks_at)
            return waiter.looks_at

    def _is_asked_for(self, demand: Demand, waiter: LocalWaiter) -> bool:
        """Whether a thread must not ask because its ticket is in the queue. Caller holds the inventory's lock.

        Elsewhere one thread may ask for several; where those who wait are counted, each asks once.
        """
        return self.asks_at_once and waiter.ticket in demand.tickets

    def opens_for_itself(self, grant: Grant) -> None:
        """A waiting thread takes a grant into its own hands."""
        with self._inventory.lock:
            demand = self.demand_for(grant.key)
            demand.opens_for_itself(grant.number, monotonic())
            self._note_spare(grant.key, demand)

    def expects_opening(self, key: str) -> None:
        """Something is being opened for those who wait: one of them looks again should it take too long."""
        with self._inventory.lock:
            self._have_one_look(self.demand_for(key))

    def _have_newest_ask(self, demand: Demand) -> None:
        """Of those that hope one asks, whose ticket the books have for longest. Caller holds the inventory's lock."""
        if demand.tickets:
            return
        newest = next((one for one in reversed(demand.waiting) if one.is_ready), None)
        if newest is not None:
            newest.poke()

    def have_another_ask(self, demand: Demand, now: float) -> None:
        """Whoever could ask has asked already: if more is wanted, one that has no ticket looks. Caller holds the lock."""
        if not demand.wants_more(now):
            return
        for waiter in demand.waiting:
            if waiter.is_ready and not waiter.insists and waiter.ticket not in demand.tickets:
                waiter.poke()
                return

    def _have_one_look(self, demand: Demand) -> None:
        """The first thread that could ask looks around when an opening takes too long. Caller holds the lock."""
        first = next((one for one in demand.waiting if one.is_ready and not one.insists), None)
        if first is not None and first.looks_at > demand.late_at(monotonic()):
            first.poke()

    def starving_ticket(self, waiter: LocalWaiter) -> Ticket | None:
        """The ticket with which the books are told that the waiter's key starves, where that is due."""
        with self._inventory.lock:
            demand, now = self.demand_for(waiter.key), monotonic()
            if now < demand.starves_at(
                waiter.since, self._durations.opening_s, self._durations.use_s
            ):
                return None
            return demand.says_starving(now)

    def ticket_ended(self, ticket: Ticket, answer: Any) -> bool:
        """The books have taken a ticket out of their queue; False if this pool does not know it.

        answer: for the thread that waits with it, if there is one; None: somebody else sees to that thread.
        """
        with self._inventory.lock:
            key = self.answered(ticket)
            waiters = list(self.waiters.get(key, ())) if key is not None else []
        if key is None:
            return False
        if answer is None:
            return True
        answered = any(waiter.ticket == ticket and waiter.give(answer) for waiter in waiters)
        # Others may have counted on this ticket, except where each has its own.
        if not (answered and self.asks_at_once):
            self.poke(key)
        return True

    def answered(self, ticket: Ticket) -> str | None:
        """Forget a ticket; its key, if it was known. Caller holds the inventory's lock."""
        key = self._asked.get(ticket)
        if key is not None:
            self.demand_for(key).answered(ticket)
            del self._asked[ticket]  # last: see `must_ask`
        return key

    def forget_tickets(self) -> None:
        """The session is over, and with it all tickets."""
        with self._inventory.lock:
            for ticket in list(self._asked):
                self.answered(ticket)

    def waiter_for(self, key: str, ticket: Ticket) -> LocalWaiter | None:
        """The thread that waits with this ticket, else (unless there are lanes) the oldest for this key, else None."""
        waiting = [waiter for waiter in list(self.waiters.get(key, ())) if waiter.is_open]
        for waiter in waiting:
            if waiter.ticket == ticket:
                return waiter
        if self.by_ticket:
            return None
        # A thread that is in a call may be long in coming: nothing is opened in its own hands.
        usable = [waiter for waiter in waiting if waiter.is_ready or not waiter.opens_here]
        return next((waiter for waiter in usable if waiter.is_ready), usable[0] if usable else None)

    def begins_opening(self, grant: Grant, waiter: LocalWaiter) -> bool:
        """Whether the open hook is to be called for a grant; not where nobody needs it any more."""
        with self._inventory.lock:
            insists = waiter.insists and waiter.is_open
            return self.demand_for(grant.key).begins(grant.number, monotonic(), insists=insists)

    def arrived(self, grant: Grant) -> None:
        """What has become of an opening, a resource or an error, is with a thread or on the shelf."""
        with self._inventory.lock:
            demand = self.demands.get(grant.key)
            if demand is not None:
                demand.arrived(grant.number)
                self._idle.forget(grant.key)

    def why_nothing(self, key: str) -> str:
        """For a checkout whose time has passed, where the books have not said why."""
        with self._inventory.lock:
            demand = self.demand_for(key)
            waiting, opening, held = len(demand.waiting), len(demand.opening), len(demand.open)
        cap = self._max_size
        bound = "no cap" if cap is None else f"max_size={cap}"
        text = f"{held} resources of this process are in use ({bound}), and {waiting} of its threads wait"
        if opening:
            text = f"{text}; {opening} are being opened, and will serve the next checkouts"
        return f"{text}; {self.elsewhere}" if self.elsewhere else text

    def poke(self, key: str, *, all_of_them: bool = False) -> None:
        """Less is on its way for a key than before: have a thread that could ask for more look around, or each of them.

        Nobody is woken where as much is on its way as threads wait: that thread would find out no more than this.
        """
        if not self.waiters.get(key):
            return
        with self._inventory.lock:
            demand, now = self.demand_for(key), monotonic()
            if not (self.asks_at_once or demand.wants_more(now)):
                return
            for waiter in demand.waiting:
                if waiter.is_ready and self._may_ask(demand, waiter, now):
                    waiter.poke()
                    if not all_of_them:
                        return

    def _give_up_spare_later(self, due: float) -> None:
        if self.asks_at_once:
            self.give_up_spare(math.inf)
        else:
            self._context.housekeeper.expects(due)

    def give_up_spare(self, now: float) -> float:
        """Give up tickets that no thread waits for; when this has to be looked at again."""
        again = math.inf
        given_up: list[Ticket] = []
        with self._inventory.lock:
            for key in list(self._spare):
                demand = self.demand_for(key)
                due = demand.spare_due_at()
                if due <= now:
                    spare = demand.give_up_spare(now if now < math.inf else monotonic())
                    for ticket in spare:
                        self._asked.pop(ticket, None)
                    given_up += spare
                    self._idle.forget(key)
                again = min(again, self._note_spare(key, demand))
            self._inventory.tell(*(Abandoned(ticket) for ticket in given_up))
        if given_up:
            self._context.link.flush()
        return again

    def _note_spare(self, key: str, demand: Demand) -> float:
        """When tickets of a key are to be given up; infinity: not as things are. Caller holds the inventory's lock."""
        due = demand.spare_due_at()
        if due < math.inf:
            self._spare.add(key)
        else:
            self._spare.discard(key)
        return due

    def in_want(self) -> int:
        """How many threads wait without a resource being opened for them."""
        with self._inventory.lock:
            return sum(
                max(0, len(demand.waiting) - len(demand.opening))
                for demand in self.demands.values()
                if demand.waiting
            )

    def longest_wait(self, now: float) -> float:
        """For how long the first of those that wait now has waited; 0 where nobody does."""
        waiters = self.all_waiters()
        return max(0.0, now - min(waiter.since for waiter in waiters)) if waiters else 0.0

    def all_waiters(self) -> list[LocalWaiter]:
        """Those who wait now."""
        with self._inventory.lock:
            return [waiter for queue in self.waiters.values() for waiter in queue]
