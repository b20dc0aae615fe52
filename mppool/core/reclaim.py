"""Asking processes to bring slots back, when somebody waits and there is no free slot.

The measures are in `sharing`. The `Reclaimer` applies them to one pool, and remembers what it asked for until that is
answered, is overdue, or nobody waits any more. It returns orders; `PoolBooks` sends them.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterator
from typing import NamedTuple

from mppool.core import sharing
from mppool.core.capacity import Capacity
from mppool.core.decisions import Reclaim
from mppool.core.heap import ascending
from mppool.core.sharing import OpeningTimes
from mppool.core.waiter import Waiter
from mppool.core.waiting import ByLane, Waiting
from mppool.ids import ProcessId

Order = tuple[ProcessId, Reclaim]
"""Whom to tell what."""


class Asked:
    """What one process was asked for: `wanted` slots, counted on until `until`.

    takers: while they are counted on, the processes for which they were asked.
    """

    __slots__ = ("takers", "until", "wanted")

    def __init__(self, until: float) -> None:
        self.wanted = 0
        self.until = until
        self.takers: deque[ProcessId] = deque()


class _Called(NamedTuple):
    """What a process was told of lanes. settled: see Reclaim. swept: to bring back what lies idle."""

    settled: str | None
    swept: bool


_UNCALLED = _Called(None, False)


class Reclaimer:
    """Who is contended, who is left in peace, and when to look for surplus again."""

    def __init__(
        self,
        pool: str,
        waiting: Waiting,
        capacity: Capacity,
        openings: OpeningTimes,
        attached: Collection[ProcessId],
    ) -> None:
        self._pool = pool
        self._waiting = waiting
        self._capacity = capacity
        self._slots = capacity.slots
        self._openings = openings
        self._attached = attached
        self.asked: dict[ProcessId, Asked] = {}
        self._wanted = 0  # of all of them
        # Those that are counted on still, in the order in which they will not be any longer.
        self._timely: OrderedDict[ProcessId, Asked] = OrderedDict()
        self._timely_wanted = 0
        self._takers_of_timely: Counter[ProcessId] = Counter()
        # When the first slot will have earned its opening that could help, as of the last plan.
        self._earned_at = math.inf
        # A heap of (-left, process): how many slots they could still be asked for. What has been overtaken
        # by events is passed over, and dropped in the end.
        self._richest: list[tuple[int, ProcessId]] = []
        # Until when: processes that brought back what helped nobody. Asked again at once, they would
        # bring the same again, and so on for ever.
        self._in_peace: dict[ProcessId, float] = {}
        self._look_at = -math.inf
        self._pause = sharing.FIRST_LOOK_S
        # Where the pool has lanes: processes that bring back everything while anybody waits.
        self._called: dict[ProcessId, _Called] = {}
        # Processes that have given all that was asked for, and are to hear it unless they are asked again.
        self._gave_all: dict[ProcessId, None] = {}

    def plan(self, now: float) -> list[Order]:
        """Ask for as many slots as are short, where the policy finds somebody to ask."""
        orders = self._orders(now)
        if self._gave_all:
            known = {**dict(orders), **self.asked, **self._called}
            orders += [(one, self._at_ease()) for one in self._gave_all if one not in known]
            self._gave_all.clear()
        return orders

    def _orders(self, now: float) -> list[Order]:
        self._earned_at = math.inf
        above_cap, elsewhere = self._capacity.above_cap(), self._capacity.wanted_elsewhere
        if not self._waiting.by_name and not above_cap and not elsewhere:
            return self._calm()
        if not above_cap and not elsewhere and self._capacity.opens_enough():
            return []  # nobody could use a slot that becomes free
        orders = [] if self._waiting.lanes is None else self._call_all(self._waiting.lanes)
        short = self._short(now)
        while short > 0 and self._ask_one(orders, now):
            short -= 1
        short = max(0, short) + elsewhere
        if short > 0:
            self._look_for_surplus(orders, now, short)
        return orders

    def next_deadline(self, since: float) -> float:
        """When, after `since`, `plan` may come to another result although nothing happened."""
        if not (self._waiting.by_name or self._capacity.must_give()):
            return math.inf
        candidates = [
            self._look_at,
            self._slots.next_disappointment(since),
            self._earned_at,
        ]
        candidates += self._in_peace.values()
        for asked in self._timely.values():
            if asked.until > since:
                candidates.append(asked.until)
                break
        return min((at for at in candidates if at > since), default=math.inf)

    def brought_back(self, process: ProcessId, now: float, *, given: bool) -> Reclaim | None:
        """A process brought a slot back; returns what it must be told of that before it knows what becomes of the slot.

        given: it was taken from it. One that was not ends the asking: what comes next may help no more.
        """
        asked = self.asked.get(process)
        if asked is not None:
            self._want(process, asked, -1)
            if asked.takers:
                self._promise(asked.takers.popleft(), -1)
            if not given:
                self._in_peace[process] = now + sharing.ANSWER_S
            if asked.wanted > 0 and given:
                return None
            self._expect_nothing(process)
        # It believes that somebody waits. Told nothing, it would bring all of its slots back for ever.
        if given:
            self._gave_all[process] = None  # mostly the next plan asks it again
        return None if given or process in self._called else self._at_ease()

    def forget(self, process: ProcessId) -> None:
        """The process is dead, or has a new session and knows nothing of what it was asked."""
        self._expect_nothing(process)
        self._in_peace.pop(process, None)
        self._called.pop(process, None)
        self._gave_all.pop(process, None)

    def _at_ease(self, process: ProcessId | None = None) -> Reclaim:
        settled = None if process is None else self._called.get(process, _UNCALLED).settled
        return Reclaim(self._pool, contended=False, sweep=0, idle_for=0.0, settled=settled)

    def _calm(self) -> list[Order]:
        self._in_peace.clear()
        self._pause = sharing.FIRST_LOOK_S
        if not self.asked and not self._called:
            return []
        orders = [(process, self._at_ease(process)) for process in {**self.asked, **self._called}]
        for process in list(self.asked):
            self._expect_nothing(process)
        self._called.clear()
        return orders

    def _call_all(self, lanes: ByLane) -> list[Order]:
        """Tell every process that somebody waits: only who sees all releases can give each lane its right.

        Where a lane has less than its right, they bring back at once what lies idle. Where one lane waits alone and has
        its right, they hand over at home what it has given back.
        """
        orders: list[Order] = []
        if not self._waiting.by_name:
            return orders
        short, settled = lanes.wanted_by_right(), lanes.settled()
        for process in self._slots.levels:
            if process not in self._attached:
                continue
            called = self._called.get(process, _UNCALLED)
            # Who is asked for a slot must not keep what it was asked for.
            means = None if process in self.asked else settled
            if called.swept < bool(short) or called.settled != means or called is _UNCALLED:
                self._called[process] = _Called(means, called.swept or bool(short))
                orders.append((process, Reclaim(self._pool, True, short, 0.0, means)))
        return orders

    def _short(self, now: float) -> int:
        """Waiters, and slots above the cap, for whom nothing is on its way yet."""
        waiting = self._capacity.could_use(len(self._waiting.by_name), now)
        wanted = waiting + self._capacity.above_cap()
        coming = self._slots.on_the_way(now) + self._capacity.coming
        return wanted - coming - self._asked_for(now)

    def _in_line(self, now: float) -> Iterator[Waiter]:
        """The oldest waiter of every group that may open, the neediest first."""
        breakers = self._capacity.breakers
        # What one of a process cannot get its others cannot either, where nothing but the cap stands in their way.
        line = self._waiting.in_line(of_processes=not (breakers or self._capacity.has_inner))
        return (head for head in line if breakers.permit(head.key, now))

    def _asked_for(self, now: float) -> int:
        """Slots that are counted on although nobody has brought them yet."""
        while self._timely:
            process, asked = next(iter(self._timely.items()))
            if now < asked.until:
                break
            del self._timely[process]
            self._timely_wanted -= asked.wanted
            self._break_promises(asked)
        return self._timely_wanted

    def _promised_to(self, process: ProcessId) -> int:
        """Slots that others were asked for on behalf of a process, or are closing for it."""
        return self._takers_of_timely[process] + self._slots.promised_to(process)

    def _promise(self, taker: ProcessId, change: int) -> None:
        self._takers_of_timely[taker] += change
        if not self._takers_of_timely[taker]:
            del self._takers_of_timely[taker]

    def _break_promises(self, asked: Asked) -> None:
        while asked.takers:
            self._promise(asked.takers.popleft(), -1)

    def _want(self, process: ProcessId, asked: Asked, change: int) -> None:
        """Want more or fewer slots of a process."""
        asked.wanted += change
        self._wanted += change
        if process in self._timely:
            self._timely_wanted += change
        self.level_changed(process)

    def _expect_nothing(self, process: ProcessId) -> None:
        asked = self.asked.get(process)
        if asked is not None:
            self._want(process, asked, -asked.wanted)
            self._break_promises(asked)
            self._timely.pop(process, None)
            del self.asked[process]

    def _ask_one(self, orders: list[Order], now: float) -> bool:
        """Ask somebody for one slot more; False if there is nobody to ask."""
        if self._capacity.excess(now) > self._asked_for(now):
            # More slots than the cap allows: everybody may be asked.
            donor = next((process for process, _ in self._by_spare(now)), None)
            if donor is not None:
                orders.append(self._ask(donor, now))
            return donor is not None
        for taker in self._takers(now):
            if (donor := self._donor(taker, now)) is not None:
                # A sweep knows nothing of keys: where only one key helps, all that is idle is looked at.
                everything = self._capacity.blocked_by_identity(taker)
                orders.append(self._ask(donor, now, taker.process, everything=everything))
                return True
        return False

    def _ask(
        self,
        donor: ProcessId,
        now: float,
        taker: ProcessId | None = None,
        *,
        everything: bool = False,
    ) -> Order:
        asked = self.asked.setdefault(donor, Asked(now))
        asked.until = now + sharing.ANSWER_S
        if donor not in self._timely:
            self._timely_wanted += asked.wanted
        self._timely[donor] = asked
        self._timely.move_to_end(donor)
        self._want(donor, asked, 1)
        if taker is not None:
            asked.takers.append(taker)
            self._promise(taker, 1)
        sweep = self._slots.levels[donor] if everything else asked.wanted
        if donor in self._called:
            self._called[donor] = self._called[donor]._replace(settled=None)
        return donor, Reclaim(self._pool, contended=True, sweep=sweep, idle_for=0.0)

    def level_changed(self, process: ProcessId) -> None:
        """A process can be asked for more or fewer slots than before."""
        left = self._left(process)
        if left > 0:
            heapq.heappush(self._richest, (-left, process))
            if len(self._richest) > 4 * len(self._slots.levels) + 64:
                self._richest = [(-self._left(each), each) for each in self._slots.levels]
                heapq.heapify(self._richest)

    def _left(self, process: ProcessId) -> int:
        """How many slots a process has that it neither closes nor was asked for."""
        asked = self.asked.get(process)
        held = self._slots.levels.get(process, 0) - self._slots.closing_of(process)
        return held - (asked.wanted if asked else 0)

    def _spare(self, process: ProcessId, now: float) -> int:
        """How many more slots a process can be asked for at all."""
        asked = self.asked.get(process)
        if process not in self._attached or now < self._in_peace.get(process, now):
            return 0
        if asked is not None and now >= asked.until:
            return 0
        return self._left(process)

    def _by_spare(self, now: float) -> Iterator[tuple[ProcessId, int]]:
        """Who can be asked, and for how many slots: the richest first, and only as far as it is asked."""
        richest = self._richest
        while richest and self._left(richest[0][1]) != -richest[0][0]:
            heapq.heappop(richest)
        seen: set[ProcessId] = set()
        for minus_left, process in ascending(richest):
            if minus_left >= 0:
                return
            if self._left(process) == -minus_left and process not in seen:
                seen.add(process)
                if (spare := self._spare(process, now)) > 0:
                    yield process, spare
                if len(seen) == len(self._slots.levels):
                    return

    def _takers(self, now: float) -> Iterator[Waiter]:
        """For whom slots may be asked for, the neediest first.

        If one unrestricted waiter cannot be served, neither can the next, unless its own process holds a slot
        for another key, or slots are on their way to it. So two unrestricted waiters are enough to look at.
        """
        unblocked = 0
        for waiter in self._in_line(now):
            promised = self._promised_to(waiter.process)
            if self._waiting.count_of_process(waiter.process) <= promised:
                continue
            yield waiter
            if promised or self._is_blocked(waiter):
                continue
            unblocked += 1
            if unblocked >= sharing.MOST_TRIED and not self._capacity.has_inner:
                return

    def _is_blocked(self, waiter: Waiter) -> bool:
        return self._capacity.blocked_by_identity(waiter) or self._capacity.blocked_by_process(
            waiter
        )

    def _donor(self, taker: Waiter, now: float) -> ProcessId | None:
        """The richest process that may fairly be asked for one more slot, or None.

        Its own resources for other keys make room without taking from anybody.
        """
        by_identity = self._capacity.blocked_by_identity(taker)
        own = 0 if by_identity else self._own_others(taker, now)
        if self._capacity.blocked_by_process(taker) and not by_identity:
            return taker.process if own else None
        slots = self._slots
        level = (
            slots.level_of(taker.process, taker.key) if by_identity else slots.levels[taker.process]
        )
        level += self._promised_to(taker.process)
        starves = self._waiting.is_starving(taker)
        best = taker.process if own else None
        most = max(own, sharing.least_giving_level(level, starves=starves) - 1)
        unearned = 0
        for process, spare in self._by_spare(now):
            if spare <= most:
                return best  # those further down have no more
            if process == taker.process:
                continue
            evens_out = sharing.evens_out(spare, level)
            if not self._has_earned(process, now, evens_out=evens_out):
                unearned += 1
                if unearned >= sharing.MOST_UNEARNED:
                    return self._oldest_donor(taker, level, now, best, most)
                continue
            part = self._part(taker, process, spare)
            if part > most:
                best, most = process, part
        return best

    def _oldest_donor(
        self,
        taker: Waiter,
        level: int,
        now: float,
        best: ProcessId | None,
        most: int,
    ) -> ProcessId | None:
        """As `_donor`, but only those are looked at whose slots have been open for longest.

        Where there are fewer slots than busy processes, most have no slot yet that has earned its opening.
        level: of the taker, with what is on its way.
        """
        soonest_s = sharing.earned_after_s(self._openings.least, evens_out=level <= 0)
        for slot in self._slots.open_in_order():
            if now < slot.opened_at + soonest_s:
                self._earned_at = min(self._earned_at, slot.opened_at + soonest_s)
                break  # those that were opened later have not either
            if slot.process == taker.process:
                continue
            spare = self._spare(slot.process, now)
            evens_out = sharing.evens_out(spare, level)
            earned_at = self._openings.earned_at(slot, evens_out=evens_out)
            if now < earned_at:
                self._earned_at = min(self._earned_at, earned_at)
                continue
            part = self._part(taker, slot.process, spare)
            if part > most:
                best, most = slot.process, part
        return best

    def _part(self, taker: Waiter, process: ProcessId, spare: int) -> int:
        """How much of what a process can spare could help."""
        if self._capacity.blocked_by_identity(taker):
            return min(spare, self._slots.level_of(process, taker.key))
        return spare

    def _own_others(self, taker: Waiter, now: float) -> int:
        """How many slots for other keys the taker's own process can be asked for."""
        slots = self._slots
        others = slots.levels[taker.process] - slots.level_of(taker.process, taker.key)
        return max(0, min(others, self._spare(taker.process, now)))

    def _has_earned(self, process: ProcessId, now: float, *, evens_out: bool) -> bool:
        """Whether a slot of the process has earned its opening; else note when the first will have."""
        slot = self._slots.oldest_open(process)
        if slot is None:
            return False
        earned_at = self._openings.earned_at(slot, evens_out=evens_out)
        if now >= earned_at:
            return True
        self._earned_at = min(self._earned_at, earned_at)
        return False

    def _look_for_surplus(self, orders: list[Order], now: float, short: int) -> None:
        """Ask everybody for what lies idle, at most once per interval."""
        if now < self._look_at:
            return
        self._look_at = now + self._pause
        self._pause = min(self._pause * 2, sharing.LONGEST_LOOK_S)
        is_reserve = self._waiting.lanes is not None
        idle_s = sharing.surplus_after_s(self._openings.measured(), is_reserve=is_reserve)
        for process in self._slots.levels:
            if process in self._attached:
                contended = process in self.asked or process in self._called
                settled = self._called.get(process, _UNCALLED).settled
                orders.append((process, Reclaim(self._pool, contended, short, idle_s, settled)))
