"""The books of one pool, and the only owner of its state: slots, waiters, breakers, counters, the bounds
and options in force, the generation, and what `Upkeep`, `Reclaimer` and `Eviction` remember beside them.

Every public method is told the time and what happened, changes the state, and leaves the decisions in
`out`. A slot is counted from its grant until its end is proved: by the process itself (Closed,
OpenFailed, Declined, NotMine), by its inventory, or by its death. The end of a connection proves nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mppool.core import bounds, holders, inventory, returns, sharing, snapshot
from mppool.core.breaker import Breakers
from mppool.core.decisions import (
    Close,
    Decision,
    Draining,
    DropToken,
    Erase,
    Grant,
    Notice,
    PoolChanged,
    Queued,
    Record,
    RecordPool,
    Refuse,
    RefuseReason,
)
from mppool.core.declarations import Bounds
from mppool.core.events import (
    BackendFailed,
    Checkout,
    Closed,
    CloseReason,
    Declaration,
    Event,
    Held,
    IdleTooLong,
    Opened,
    OpenFailed,
    Remembered,
    Resize,
    Returned,
    TokenReplaced,
)
from mppool.core.eviction import Eviction
from mppool.core.reclaim import Reclaimer
from mppool.core.slot import Slot, SlotState
from mppool.core.surroundings import Surroundings
from mppool.core.table import SlotTable
from mppool.core.upkeep import Upkeep
from mppool.core.waiting import Waiter, Waiting
from mppool.ids import ProcessId, Ticket
from mppool.options import changes
from mppool.stats.names import SERVER_COUNTERS


class PoolBooks:
    """Slots, waiters and bounds of one pool, over all processes and identities."""

    def __init__(self, declaration: Declaration, declared_at: float, around: Surroundings) -> None:
        options = declaration.options
        self.name = declaration.pool
        self.options = options
        self.declared_at = declared_at
        self.bounds = Bounds(options, declared_at)
        self.max_size, self.min_size = options.max_size, options.min_size
        self.generation = 0
        self.closed = False
        self.closed_at = -math.inf
        self.slots = SlotTable(self, around.pool_of, around.slot_of)
        self.waiting = Waiting(self.slots.levels)
        self.slots.level_changed = self._level_changed
        self.waiting.noted = self._waiter_noted
        self.breakers = Breakers(self.waiting.count_of_key)
        self.reclaimer = Reclaimer(self.slots)
        self.openings = sharing.OpeningTimes()
        self.upkeep = Upkeep(declaration.key)
        self.eviction = Eviction()
        self.counters: Counter[str] = Counter(dict.fromkeys(SERVER_COUNTERS, 0))
        # What earlier servers had counted, as far as it is known; it is in the counters.
        self.earlier: Counter[str] = Counter()
        self.born = declared_at + declaration.age
        # When `tick` is wanted next, as `Books` looked last.
        self.deadline = math.inf
        self._around = around
        self._settled_at = -math.inf
        # Who holds what, as it was said last, and until when that is said again.
        self._said, self._said_until = "", -math.inf

    # --- what happened -----------------------------------------------------------------------------------

    def declare(self, declaration: Declaration, process: ProcessId, now: float) -> None:
        """A process declares the pool. The newest declaration wins, with one warning.

        It opens a pool that was closed before it was made. Of the bounds it changes what it says otherwise than
        the declaration before it, unless they were set later than it was made.
        """
        if declaration.closed:
            self.upkeep.forget(process)
            return
        made_at = now - declaration.age
        newest = made_at > self.declared_at
        self.upkeep.declare(process, declaration.key, newest=newest)
        if self.closed and made_at > self.closed_at:
            self.closed = False
            self.announce()
            self._settle(now)
        before = self.options
        if newest:
            self.options, self.declared_at = declaration.options, made_at
        if self.options != before:
            text = f"this declaration replaces an older one: {changes(before, self.options)}"
            self.tell(process, Notice(self.name, text))
        if self.bounds.declare(declaration.options, made_at) or self.options != before:
            self._reconfigured(now)

    def refuses_at_once(self, process: ProcessId, event: Checkout) -> bool:
        """Whether a checkout that waits for nobody gets nothing, and is told so. That changes nothing at all."""
        full = self.max_size is not None and len(self.slots.by_number) >= self.max_size
        if event.timeout != 0 or not full or self.closed or self.breakers:
            return False
        name = (process, event.ticket)
        if self.waiting.by_name or name in self.slots.by_ticket:
            return False
        if self.options.prefill and not self.upkeep.wanted:
            return False
        text = bounds.how_full(self, event.key)
        self._around.out.append((process, Refuse(event.ticket, "timeout", text)))
        return True

    def checkout(self, process: ProcessId, event: Checkout, now: float) -> None:
        """A process wants a resource that it does not have. Answered at once."""
        self.upkeep.wanted = self.upkeep.wanted or self.options.prefill
        self.slots.give_up_openings(now)
        name = (process, event.ticket)
        if name in self.waiting.by_name or name in self.slots.by_ticket:
            return  # a duplicate of a checkout that is answered already
        if self.closed:
            self._refuse(process, event.ticket, "closed", f"pool {self.name!r} is closed")
            return
        breaker = self.breakers.get(event.key)
        if (
            breaker
            and self.options.fail_fast
            and not breaker.permits(now)
            and bounds.has_room(self, process, event.key)
        ):
            self._refuse(process, event.ticket, "open_failed", breaker.error)
            return
        if not self.waiting.by_name:  # nobody who might come first
            if self.may_open(process, event.key, now):
                self.grant(process, event.key, event.ticket, now)
                return
            if event.timeout == 0:
                self._refuse(process, event.ticket, "timeout", bounds.how_full(self, event.key))
                return
        deadline = math.inf if event.timeout is None else now + event.timeout
        self.waiting.add(Waiter(process, event.ticket, event.key, now, deadline))
        self._serve(now)
        if name not in self.waiting.by_name:
            return
        limit = self.options.max_waiting
        if event.timeout == 0:
            self.waiting.remove(process, event.ticket)
            self._refuse(process, event.ticket, "timeout", bounds.how_full(self, event.key))
        elif limit is not None and len(self.waiting) > limit:
            self.waiting.remove(process, event.ticket)
            full = bounds.how_full(self, event.key)
            text = f"{bounds.line_is_full(limit)}; {full}"
            self.counters["refused"] += 1
            self._refuse(process, event.ticket, "too_many_waiting", text)
        else:
            self.tell(process, Queued(event.ticket))
            self.reclaimer.plan(self, now)

    def abandon(self, process: ProcessId, ticket: Ticket, now: float) -> None:
        """A waiter waits no longer. One that was answered already is no concern of ours."""
        if self.waiting.remove(process, ticket) is not None:
            self._settle(now)

    def starves(self, process: ProcessId, ticket: Ticket, now: float) -> None:
        """A process says that nothing has been given back there for long."""
        if self.waiting.starves(process, ticket, now):
            self._settle(now)

    def of_slot(self, slot: Slot, event: Event, now: float) -> None:
        """Something happened to a slot; what is not legal now is refused and changes nothing."""
        after = slot.after(event)
        if after is None:
            return
        self.slots.give_up_openings(now)
        if isinstance(event, Returned):
            returns.answer(self, slot, now, event.idle_s)
        elif isinstance(event, IdleTooLong):
            self.upkeep.idle_too_long(self, slot, now)
        elif isinstance(event, Opened):
            self.openings.note(slot.key, event.seconds)
            self.opened(slot, now)
        else:
            if isinstance(event, OpenFailed):
                self._open_failed(slot, event, now)
            elif isinstance(event, Closed) and slot.state is not SlotState.OPENING:
                self._count_closed(event.reason)
            self.free(slot)
        self._settle(now)

    def revoke(self, slot: Slot, error: str, now: float) -> None:
        """The grant could not be written down, so it was not given.

        A slot that came from an inventory is held, whether it is written down or not.
        """
        if slot.state is SlotState.OPENING and slot.ticket is not None:
            self.free(slot)
            text = f"pool {self.name!r}: the server cannot write its journal: {error}"
            self._refuse(slot.process, slot.ticket, "journal", text)

    def died(self, process: ProcessId, now: float) -> None:
        """Everything that the process had is free."""
        self._forget_process(process)
        for slot in self.slots.of(process):
            self.counters["died_with_process"] += 1
            self.free(slot)
        self._settle(now)

    def detached(self, process: ProcessId, now: float) -> None:
        """The process cannot be told anything, but may live: its waiters go, its slots stay."""
        self._forget_process(process)
        self._settle(now)

    def attached(self, process: ProcessId, held: list[Held], now: float) -> None:
        """The inventory of a process replaces whatever was believed about it."""
        inventory.take_over(self, process, held, now)
        self._settle(now)

    def counted_earlier(self, counters: Mapping[str, int]) -> None:
        """Earlier servers had counted so much; what this one counts comes on top."""
        for name, count in counters.items():
            if name in self.counters and count > self.earlier[name]:
                self.counters[name] += count - self.earlier[name]
                self.earlier[name] = count

    def remember(self, item: Remembered, now: float) -> None:
        """A slot from the journal: held until its process attaches, or is proved dead."""
        slot = Slot(item.number, item.process, item.key, item.generation, SlotState.OPEN, now)
        self.slots.remember(slot, now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        for waiter in self.waiting.expired(now):
            text = bounds.how_full(self, waiter.key)
            self._refuse(waiter.process, waiter.ticket, "timeout", text)
        self._settle(now)

    # --- commands ----------------------------------------------------------------------------------------

    def resize(self, event: Resize, now: float) -> None:
        """New bounds. What is open beyond a smaller cap goes when it is idle or released."""
        if event.max_size_given:
            self.bounds.max_size.set(event.max_size, now)
        if event.min_size is not None:
            self.bounds.min_size.set(event.min_size, now)
        self._reconfigured(now)

    def restore(self, record: RecordPool) -> None:
        """Go on with what the journal says of the pool. What happens next makes it count."""
        self.bounds.restore(record, self.declared_at)
        self.max_size, self.min_size = record.max_size, record.min_size
        self.generation, self.closed = record.generation, record.closed
        self.closed_at = record.closed_at if record.declared else self.declared_at

    def reset(self, now: float) -> None:
        """A new generation: whatever was opened before goes when it is idle or released."""
        self.upkeep.begin_generation(self)
        self.breakers.clear()
        self._settle(now)

    def drain(self, process: ProcessId, generation: int | None, now: float) -> None:
        """Start a drain (None), or say how much of the one that ended at `generation` is left."""
        if generation is None:
            self.reset(now)
            generation = self.generation
        left = sum(slot.generation < generation for slot in self.slots)
        self._around.out.append((process, Draining(self.name, generation, left)))

    def backend_failed(self, event: BackendFailed, now: float) -> None:
        """A check found the backend gone; what is stale is closed when idle or released."""
        self.upkeep.backend_failed(self, event)
        self._settle(now)

    def token_replaced(self, event: TokenReplaced) -> None:
        """What was opened with the old token is closed where it lies idle, in all processes."""
        for process in self.upkeep.declarers:
            self.tell(process, DropToken(self.name, event.key, event.token))

    def want_ready(self, process: ProcessId, now: float) -> None:
        """Fill up to `min_size` from now on, and say how far that has come."""
        self.upkeep.wanted = True
        self._settle(now)
        self._around.out.append((process, self.upkeep.readiness(self)))

    def close(self, now: float) -> None:
        """Hand out nothing any more; what is out goes when it is released."""
        self.closed, self.closed_at = True, now
        self.eviction.afresh()
        for waiter in self.waiting:
            self.waiting.remove(waiter.process, waiter.ticket)
            self._refuse(waiter.process, waiter.ticket, "closed", f"pool {self.name!r} was closed")
        self.announce()
        self._settle(now)

    # --- what others may know ----------------------------------------------------------------------------

    def tell(self, process: ProcessId, decision: Decision) -> None:
        """Address a decision to a process; one that is not attached will hear at its next Attach."""
        if process in self._around.attached:
            self._around.out.append((process, decision))

    def write_down(self, decision: Record | Erase | RecordPool) -> None:
        """Address a decision to the journal."""
        self._around.out.append((None, decision))

    @property
    def epoch(self) -> int:
        """Of the server whose books these are."""
        return self._around.epoch

    def is_attached(self, process: ProcessId) -> bool:
        """Whether the process can be told anything."""
        return process in self._around.attached

    def earned_at(self, slot: Slot, *, evens_out: bool) -> float:
        """When an open slot has been open for several times as long as an opening takes.

        evens_out: it would go from a process with several slots to one that has nothing.
        """
        opening_s = self.openings.of(slot.key)
        return slot.opened_at + sharing.earned_after_s(opening_s, evens_out=evens_out)

    def close_slot(
        self, slot: Slot, reason: CloseReason, now: float, promised_to: ProcessId | None = None
    ) -> None:
        """Have a resource closed that its process brought back.

        promised_to: the process for which it is closed.
        """
        self.slots.move(slot, SlotState.CLOSING)
        self.slots.expect_end(slot, now + sharing.ANSWER_S, promised_to)
        if promised_to is not None and promised_to != slot.process:
            self.waiting.gave(slot.process, now)
        self.tell(slot.process, Close(slot.number, reason))

    def grant_kept(self, slot: Slot, waiter: Waiter) -> None:
        """Give a waiter the open resource that its own process brought back."""
        self.waiting.served(waiter.process, waiter.ticket)
        self.slots.give_to(slot, waiter.ticket)
        self._tell_grant(slot, waiter.ticket, fresh=False)

    def next_deadline(self, now: float) -> float:
        """When `tick` has something to do although nothing happened; infinity if never.

        What has become due since all was settled last counts too: it is the next tick that does it.
        """
        if not (self.waiting.by_name or self.min_size or bounds.above_cap(self)):
            return math.inf
        since = min(now, self._settled_at)
        times = [
            self.waiting.next_deadline(),
            self.slots.next_given_up() if bounds.opens_enough(self) else math.inf,
            self.reclaimer.next_deadline(self, since),
            self.upkeep.next_deadline(self, since),
        ]
        if self.waiting:
            times.append(self.breakers.next_retry(since))
        return min(times)

    def who_holds(self) -> str:
        """For people: the processes that have the most, and for how long. As of a moment ago, at most."""
        now = self._settled_at
        if now >= self._said_until:
            self._said, self._said_until = (
                holders.text(self, self._around.labels, now),
                now + holders.FRESH_S,
            )
        return self._said

    def record(self) -> RecordPool:
        """What the next server must know although nobody attached tells it."""
        closed, at = self.closed, self.closed_at
        return self.bounds.record(self.name, self.generation, closed=closed, closed_at=at)

    def snapshot(self) -> dict[str, Any]:
        """What the books know, JSON-compatible."""
        return snapshot.of_pool(self)

    # --- how it is done ----------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        self._serve(now)
        if self.min_size:
            self.upkeep.fill(self, now)
        self.reclaimer.plan(self, now)
        self.eviction.sweep(self, now)
        self._settled_at = now

    def _reconfigured(self, now: float) -> None:
        self.max_size, self.min_size = self.bounds.max_size.value, self.bounds.min_size.value or 0
        self.eviction.afresh()
        self._record()
        self._settle(now)

    def _waiter_noted(self, waiter: Waiter, change: int) -> None:
        """A waiter has come or gone."""
        self.breakers.waiters_changed(waiter.key, change)
        name = (waiter.process, waiter.ticket)
        if change > 0:
            self._around.waits_in[name] = self
        else:
            self._around.waits_in.pop(name, None)

    def _level_changed(self, process: ProcessId) -> None:
        self.waiting.level_changed(process)
        self.reclaimer.level_changed(process)

    def _forget_process(self, process: ProcessId) -> None:
        self.waiting.remove_process(process)
        self.reclaimer.forget(process)
        self.upkeep.forget(process)

    def _serve(self, now: float) -> None:
        """Give free slots to those who wait, as far as the bounds allow."""
        self.slots.give_up_openings(now)
        if not self.waiting or self._around.awaited:
            return
        while bounds.is_below_cap(self):
            if bounds.opens_enough(self):
                return
            line = self.waiting.in_line()
            waiter = next((w for w in line if self.may_open(w.process, w.key, now)), None)
            if waiter is None:
                return
            self.waiting.served(waiter.process, waiter.ticket)
            self.grant(waiter.process, waiter.key, waiter.ticket, now)

    def grant(self, process: ProcessId, key: str, ticket: Ticket, now: float) -> None:
        """Give a process the right to open a resource, for a waiter or (NOBODY) for its shelf."""
        number = self._around.next_number()
        generation = self.upkeep.generation_of(self, key)
        opened_before = self.counters["opened"] + self.slots.in_state(SlotState.OPENING)
        state = SlotState.OPENING
        slot = Slot(number, process, key, generation, state, now, ticket, opened_before)
        self.slots.add(slot)
        self.breakers.granted(key, number, now)
        self.write_down(Record(self.name, key, number, process, generation))
        self._tell_grant(slot, ticket, fresh=True)

    def _tell_grant(self, slot: Slot, ticket: Ticket, *, fresh: bool) -> None:
        grant = Grant(
            self.name,
            slot.key,
            slot.number,
            ticket,
            slot.generation,
            fresh,
            slot.opened_before,
            self.openings.measured(),
        )
        self.tell(slot.process, grant)

    def opened(self, slot: Slot, now: float) -> None:
        """A resource was opened."""
        self.slots.move(slot, SlotState.OPEN)
        slot.opened_at = now
        self.counters["opened"] += 1
        self.breakers.forget(slot.key)

    def _open_failed(self, slot: Slot, event: OpenFailed, now: float) -> None:
        if not event.counted:
            return
        self.counters["open_failed"] += 1
        working = self.slots.open_for(slot.key) > 0
        breaker = self.breakers.failed(
            slot, event, now, working=working, jitter=self._around.jitter()
        )
        if self.options.fail_fast and not breaker.permits(now):
            for waiter in self.waiting.of_key(slot.key):
                self.waiting.remove(waiter.process, waiter.ticket)
                self._refuse(waiter.process, waiter.ticket, "open_failed", breaker.error)

    def free(self, slot: Slot) -> None:
        """The end of a slot was proved."""
        was_open = slot.state is not SlotState.OPENING
        self.slots.remove(slot)
        if was_open:
            self.eviction.emptied(self, slot.key)
        self.breakers.probe_lost(slot.key, slot.number)
        self.write_down(Erase(slot.number))

    def may_open(self, process: ProcessId, key: str, now: float) -> bool:
        """Whether bounds and breaker allow this process one more resource of this key."""
        has_room = not self._around.awaited and bounds.has_room(self, process, key)
        return has_room and self.breakers.permit(key, now)

    def _count_closed(self, reason: CloseReason) -> None:
        self.counters["closed"] += 1
        if reason in self.counters and reason != "moved":  # moved was counted when it was decided
            self.counters[reason] += 1

    def _refuse(self, process: ProcessId, ticket: Ticket, reason: RefuseReason, text: str) -> None:
        self.tell(process, Refuse(ticket, reason, text))

    def announce(self) -> None:
        """Journal and tell everybody the generation, and whether the pool is closed."""
        self._record()
        for process in self._around.attached:
            self.tell(process, PoolChanged(self.name, self.generation, self.closed))

    def _record(self) -> None:
        self.write_down(self.record())
