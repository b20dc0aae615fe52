"""One cap over several pools: who gets the next slot, who owes slots to the others, and what lies idle for nothing.

    something happens in a pool
              |
              v
        serve: while there is room, the neediest pool takes a slot
              |
              v
        plan: the shares, max-min by what the pools have and want (`shares`)
              |
              +-- a pool above its share owes slots: it may have fewer; they go when they are idle or released
              +-- what is wanted beyond that: what lies idle in any of the pools is closed for those that wait
              |
              v
        reclaim: each pool asks its processes for what it owes

Each pool moves its own slots between its own processes, and knows nothing of the others. Between pools the same
measures count as between processes (`sharing`): equals do not exchange, and a slot is not taken before it has earned its
opening, unless the one that wants it has less than its `min_size`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from mppool.core import sharing
from mppool.core.capacity import BUDGET, Capacity
from mppool.core.decisions import RecordBudget
from mppool.core.declarations import Bound
from mppool.core.events import BudgetDeclaration
from mppool.core.min_size import MinSize
from mppool.core.service import Service
from mppool.core.shares import Claim, max_min
from mppool.core.sharing import OpeningTimes
from mppool.core.table import SlotTable, Total
from mppool.core.waiting import Waiting


class Member(Protocol):
    """What a budget knows of one of its pools: see `PoolBooks`."""

    name: str
    slots: SlotTable
    waiting: Waiting
    capacity: Capacity
    min_size: MinSize
    openings: OpeningTimes

    service: Service

    def take_slot(self, now: float) -> None:
        """Grant one slot."""

    def finish(self, now: float) -> None:
        """All has been served: ask the processes for what is wanted of them."""


class _Need:
    """One pool in the middle of a plan. staying: slots that are not on their way out. share: what it is to have."""

    def __init__(self, pool: Member, now: float) -> None:
        self.pool = pool
        self.staying = pool.capacity.staying(now)
        self.on_the_way = len(pool.slots) - self.staying
        self.wanted = pool.service.wanted(now)
        self.floor = pool.min_size.size if pool.min_size.wanted else 0
        self.share = 0

    @property
    def claim(self) -> Claim:
        return Claim(self.staying, self.staying + self.wanted, self.floor)

    @property
    def owes(self) -> int:
        return max(0, self.staying - self.share)


class BudgetBooks:
    """The cap, the pools under it, and what they owe each other. It changes no slot.

    cap: in force. total: counts the slots of all pools, and those that only the journal tells of.
    earned_at: when the first slot will have earned its opening that is owed then; infinity: none is.
    """

    def __init__(
        self,
        declaration: BudgetDeclaration,
        declared_at: float,
        unclaimed: int,
        touch: Callable[[Any], object],
    ) -> None:
        """unclaimed: slots of pools that nobody has declared yet. touch: is told of every pool that may have another deadline."""
        self._touch = touch
        self.name = declaration.budget
        self.bound = Bound(declaration.max_size, declared_at)
        self.total = Total(unclaimed)
        self.members: dict[str, Member] = {}
        self.earned_at = math.inf
        # When a pool gave a slot to another one: its waiters wait from then on.
        self._gave_at: dict[str, float] = {}
        # Whether a pool has limits, or is told of what is wanted elsewhere.
        self._is_planned = False
        self._limit: int | None = None
        self._find_cap()

    # --- what is declared and set ------------------------------------------------------------------------

    def declare(self, declaration: BudgetDeclaration, made_at: float) -> bool:
        """A process declares the budget; True if that says something new. The newest wins."""
        changed = self.bound.declare(declaration.max_size, made_at)
        self._find_cap()
        return changed

    def resize(self, max_size: int, now: float) -> None:
        """Another cap. What is open beyond it goes when it is idle or released."""
        self.bound.set(max_size, now)
        self._find_cap()

    def limit(self, most: int | None) -> None:
        """Somebody else allows less for the moment, or (None) no longer does. Nothing is journalled of it."""
        self._limit = most
        self._find_cap()

    def record(self) -> RecordBudget:
        """What the next server must know although nobody attached tells it."""
        bound = self.bound
        return RecordBudget(
            self.name, bound.value or 0, bound.declared or 0, bound.declared_at, bound.set_at
        )

    def restore(self, record: RecordBudget) -> None:
        """Go on with what the journal says."""
        self.bound.restore(record.max_size, record.declared, record.declared_at, record.set_at)
        self._find_cap()

    def _find_cap(self) -> None:
        most = self.bound.value or 0
        self.cap = most if self._limit is None else min(most, self._limit)

    # --- the pools ---------------------------------------------------------------------------------------

    def join(self, pool: Member) -> None:
        """A pool takes its slots from this budget."""
        self.members[pool.name] = pool
        pool.slots.count_in(self.total)
        pool.capacity.budget = self

    def leave(self, pool: Member) -> None:
        """A pool was declared again, without this budget."""
        del self.members[pool.name]
        self._gave_at.pop(pool.name, None)
        pool.slots.count_in(Total())
        pool.capacity.budget = None
        self._set_free(pool)

    def gave(self, pool: Member, now: float) -> None:
        """A pool gives a slot to another one: it has had its turn."""
        self._gave_at[pool.name] = now

    # --- serving -----------------------------------------------------------------------------------------

    def serve(self, now: float) -> None:
        """Give free slots to the pools that can use them, the neediest first."""
        while self.total.size < self.cap:
            pool = self._neediest(now)
            if pool is None:
                return
            pool.take_slot(now)

    def _neediest(self, now: float) -> Member | None:
        """Which pool gets the next slot: one that has less than its `min_size`; else the poorest; there, the longest wait."""
        best: tuple[tuple[bool, int, float], Member] | None = None
        for pool in self.members.values():
            since = pool.service.waits_since(now)
            if since is None:
                continue
            level = len(pool.slots)
            since = max(since, self._gave_at.get(pool.name, since))
            rank = (level >= pool.min_size.size, level, since)
            if best is None or rank < best[0]:
                best = (rank, pool)
        return None if best is None else best[1]

    # --- planning ----------------------------------------------------------------------------------------

    def settle(self, changed: Member, now: float) -> None:
        """After every event in one of the pools: serve, find out who owes what, and have it asked for."""
        self.serve(now)
        if not self._find_debts(now):
            changed.finish(now)
            return
        if self.total.size < self.cap and self._neediest(now) is not None:
            # Who was kept from it before the plan may have what is free.
            self.serve(now)
            self._find_debts(now)
        for pool in self.members.values():
            self._touch(pool)
            pool.finish(now)

    def _find_debts(self, now: float) -> bool:
        """Plan, where more is wanted than there is; False if nothing is, nor was."""
        needs = [_Need(pool, now) for pool in self.members.values()]
        self.earned_at = math.inf
        if self.total.size > self.cap or any(need.wanted for need in needs):
            self._plan(needs, now)
            self._is_planned = True
            return True
        was_planned, self._is_planned = self._is_planned, False
        if was_planned:
            for need in needs:
                self._set_free(need.pool)
        return was_planned

    def _set_free(self, pool: Member) -> None:
        pool.capacity.limit(BUDGET, None)
        pool.capacity.wanted_elsewhere = pool.capacity.coming = 0

    def _plan(self, needs: list[_Need], now: float) -> None:
        # What nobody has declared yet counts against the cap, and can be asked of nobody.
        unclaimed = self.total.size - sum(len(need.pool.slots) for need in needs)
        cap = max(0, self.cap - unclaimed)
        shares = max_min(cap, [need.claim for need in needs])
        for need, share in zip(needs, shares, strict=True):
            need.share = share
        self._rotate(needs, now)
        # Beyond the cap everything is owed at once; so is what others lack of their `min_size`.
        staying = sum(need.staying for need in needs)
        at_once = max(0, staying - cap) + sum(
            max(0, min(need.share, need.floor) - need.staying) for need in needs
        )
        evens_out = any(not need.staying and need.share for need in needs)
        due = 0
        for need in sorted(needs, key=lambda need: -need.owes):
            earned = min(need.owes, max(0, at_once))
            at_once -= earned
            if earned < need.owes:
                earned = max(earned, self._earned(need, evens_out, now))
            need.pool.capacity.limit(BUDGET, need.staying - earned if earned else None)
            due += earned
        self._tell(needs, cap, due)

    def _rotate(self, needs: list[_Need], now: float) -> None:
        """Where there are fewer slots than pools, those without any take turns with those that have one."""
        without = [need for need in needs if need.wanted and not need.share and not need.staying]
        if not without:
            return
        for taker in sorted(without, key=lambda need: self._waits_since(need.pool)):
            givers = [n for n in needs if n.staying and n.share > n.floor and n.share <= n.staying]
            giver = min(givers, key=lambda need: self._oldest_earned_at(need, now), default=None)
            if giver is None or self._oldest_earned_at(giver, now) == math.inf:
                return
            earned_at = self._oldest_earned_at(giver, now)
            if now < earned_at:
                self.earned_at = min(self.earned_at, earned_at)
                return
            giver.share -= 1
            taker.share += 1

    def _waits_since(self, pool: Member) -> float:
        """Since when a pool without slots waits for its turn."""
        return max(pool.service.oldest_since(), self._gave_at.get(pool.name, -math.inf))

    def _oldest_earned_at(self, need: _Need, now: float) -> float:
        evens_out = sharing.evens_out(need.staying, 0)
        slot = next(need.pool.slots.open_in_order(), None)
        return math.inf if slot is None else need.pool.openings.earned_at(slot, evens_out=evens_out)

    def _earned(self, need: _Need, evens_out: bool, now: float) -> int:
        """How much of what a pool owes it owes now: the slots that have earned their opening."""
        openings, earned = need.pool.openings, 0
        evens_out = evens_out and need.staying >= 2
        for slot in need.pool.slots.open_in_order():
            if earned >= need.owes:
                break
            earned_at = openings.earned_at(slot, evens_out=evens_out)
            if now < earned_at:
                self.earned_at = min(self.earned_at, earned_at)
                break
            earned += 1
        return earned

    def _tell(self, needs: list[_Need], cap: int, due: int) -> None:
        """Say how much is coming to whom, and what is wanted that nobody owes: that may lie idle somewhere."""
        closing = sum(need.on_the_way for need in needs)
        free = max(0, cap - sum(len(need.pool.slots) for need in needs))
        wanted = sum(need.wanted for need in needs)
        short = max(0, wanted - free - closing - due)
        for need in needs:
            others = closing - need.on_the_way
            capacity = need.pool.capacity
            capacity.coming = min(others, max(0, need.share - need.staying))
            capacity.wanted_elsewhere = min(short, wanted - need.wanted)

    # --- looking -----------------------------------------------------------------------------------------

    def next_deadline(self, since: float) -> float:
        """When, after `since`, a plan may come to another result although nothing happened."""
        return self.earned_at if self.earned_at > since else math.inf

    def said(self) -> str:
        """Who has how much, for people."""
        who = ", ".join(f"{len(pool.slots)} of pool {name!r}" for name, pool in self._richest(3))
        return f"budget {self.name!r} has {self.total.size} of max_size={self.cap} in use: {who}"

    def _richest(self, most: int) -> Iterable[tuple[str, Member]]:
        return sorted(self.members.items(), key=lambda item: -len(item[1].slots))[:most]
