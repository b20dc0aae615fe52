"""Every transition of a slot of one pool, with its record for the journal, its message and its counter.

Nobody else changes the table of slots. So what stands in the journal, what a process was told, what the counters say
and what the breakers know cannot differ from the table: each transition is one method here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mppool.core.breaker import Breaker, Breakers
from mppool.core.decisions import NO_GRANT, Close, Erase, Grant, Keep, Record
from mppool.core.events import CloseReason, Held, OpeningFailed, Remembered
from mppool.core.lanes import Lanes
from mppool.core.outbox import Outbox
from mppool.core.sharing import ANSWER_S
from mppool.core.slot import Slot, SlotState
from mppool.core.table import SlotTable
from mppool.core.waiter import Waiter
from mppool.ids import GrantNumbers, ProcessId, Ticket, epoch_of
from mppool.stats.names import SERVER_COUNTERS

_STATE_OF_HELD = {
    "opening": SlotState.OPENING,
    "open": SlotState.OPEN,
    "returned": SlotState.OPEN,
    "closing": SlotState.CLOSING,
}


class Ledger:
    """The writer of `slots` and `counters`; everybody may read both.

    A slot is counted from its grant until its end is proved: by the process itself (Closed, OpeningFailed,
    Declined, NotMine), by its inventory, or by its death. The end of a connection proves nothing.

    earlier: what earlier servers had counted, as far as it is known; it is in the counters.
    lanes: which say for whom a resource is in use; None: the pool has none.
    budget: the name of that against which the slots count beside the cap of the pool; "": there is none.
    """

    def __init__(
        self,
        pool: str,
        slots: SlotTable,
        breakers: Breakers,
        outbox: Outbox,
        numbers: GrantNumbers,
    ) -> None:
        self.slots = slots
        self.counters: Counter[str] = Counter(dict.fromkeys(SERVER_COUNTERS, 0))
        self.earlier: Counter[str] = Counter()
        self.budget = ""
        self.lanes: Lanes | None = None
        self._pool = pool
        self._breakers = breakers
        self._outbox = outbox
        self._numbers = numbers

    # --- a slot begins -----------------------------------------------------------------------------------

    def grant(
        self,
        process: ProcessId,
        key: str,
        ticket: Ticket,
        generation: int,
        opening_s: float,
        now: float,
        lane: str = "",
        instead_of: Slot | None = None,
    ) -> None:
        """Give a process the right to open a resource, for a waiter or (NOBODY) for its shelf.

        opening_s: what an opening lately takes. instead_of: see `exchange`.
        """
        number = self._numbers.next()
        opened_before = self.counters["opened"] + self.slots.in_state(SlotState.OPENING)
        slot = Slot(
            number,
            process,
            key,
            generation,
            SlotState.OPENING,
            now,
            ticket,
            opened_before,
            self._pool,
        )
        slot.instead_of = instead_of
        self.slots.add(slot)
        if self.lanes is not None and ticket:
            self.lanes.lent(slot, lane)
        old = NO_GRANT if instead_of is None else instead_of.number
        self._outbox.write_down(
            Record(self._pool, key, number, process, generation, self.budget, old)
        )
        if self._breakers:
            self._breakers.granted(key, number, now)
        self._tell_grant(slot, ticket, opening_s, fresh=True)

    def exchange(
        self, old: Slot, waiter: Waiter, generation: int, opening_s: float, now: float
    ) -> None:
        """A resource that was brought back is closed, and its slot goes on for a waiter of the same process.

        From here on the new number stands for both: the process opens when it has closed. So nothing is said of the
        close, and the slot counts all the time.
        """
        self.counters["moved"] += 1
        self.counters["closed"] += 1
        self.slots.remove(old)
        if self._breakers:
            self._breakers.probe_lost(old.key, old.number)
        process, key, ticket = waiter.process, waiter.key, waiter.ticket
        self.grant(process, key, ticket, generation, opening_s, now, waiter.lane, old)

    def remember(self, item: Remembered, now: float) -> None:
        """A slot from the journal: held until its process attaches, or is proved dead."""
        state = SlotState.OPEN
        slot = Slot(
            item.number, item.process, item.key, item.generation, state, now, pool=self._pool
        )
        self.slots.remember(slot, now)

    def adopt(self, process: ProcessId, item: Held, now: float) -> None:
        """An inventory names a slot: it is held as the inventory says."""
        slot = self.slots.get(item.number)
        state = _STATE_OF_HELD[item.state]
        if slot is None:
            slot = Slot(
                item.number, process, item.key, item.generation, state, now, pool=self._pool
            )
            self.slots.add(slot)
            self._record(slot)
        elif slot.process != process:
            # The number was granted to somebody else, so this resource is in no books.
            self._outbox.tell(process, Close(item.number, "retired"))
            return
        else:
            if slot.state is SlotState.OPENING and state is not SlotState.OPENING:
                self.opened(slot, now)  # what said so was lost
            self.slots.move(slot, state)
            self.slots.rename(slot, item.key)  # the journal has no room for a long key
        if state is SlotState.CLOSING:
            self.slots.expect_end(slot, now + ANSWER_S)
        slot.opened_before = item.opened_before
        if self.lanes is not None:
            self.lanes.lent(slot, item.lane)
        # What earlier servers saw opened; this one's own count is exact.
        if epoch_of(item.number) < self._numbers.epoch:
            count = item.opened_before + (state is not SlotState.OPENING)
            self.counted_earlier({"opened": count})

    def counts_against(self, budget: str) -> None:
        """The slots count against this budget from now on ("": against none), also under the next server."""
        if budget == self.budget:
            return
        self.budget = budget
        for slot in self.slots:
            self._record(slot)  # once more

    # --- it changes --------------------------------------------------------------------------------------

    def opened(self, slot: Slot, now: float) -> None:
        """The resource is open."""
        self.slots.move(slot, SlotState.OPEN)
        slot.opened_at = now
        slot.instead_of = None
        self.counters["opened"] += 1
        self._breakers.forget(slot.key)

    def keep(self, slot: Slot) -> None:
        """A resource that was brought back goes to the shelf of its process."""
        self._outbox.tell(slot.process, Keep(slot.number))

    def give(self, slot: Slot, ticket: Ticket, opening_s: float, lane: str) -> None:
        """A resource that was brought back goes, kept open, to a waiter of its own process."""
        self.slots.give_to(slot, ticket)
        if self.lanes is not None:
            self.lanes.lent(slot, lane)
        self._tell_grant(slot, ticket, opening_s, fresh=False)

    def close(
        self, slot: Slot, reason: CloseReason, now: float, promised_to: ProcessId | None = None
    ) -> None:
        """A resource that was brought back is closed, for the process `promised_to`, if for any."""
        if reason == "moved":
            self.counters["moved"] += 1
        self.slots.move(slot, SlotState.CLOSING)
        self.slots.expect_end(slot, now + ANSWER_S, promised_to)
        self._outbox.tell(slot.process, Close(slot.number, reason))

    def take_back(self, slot: Slot, now: float) -> None:
        """A grant could not be written down: it was not given. What was to be closed for it is closed all the same."""
        old = slot.instead_of
        self.free(slot)
        if old is not None:
            old.state = SlotState.OPEN
            self.slots.add(old)
            self.counters["moved"] -= 1
            self.counters["closed"] -= 1
            self.close(old, "moved", now)

    # --- it ends -----------------------------------------------------------------------------------------

    def failed(self, slot: Slot, event: OpeningFailed, now: float, jitter: float) -> Breaker | None:
        """Opening failed; returns the breaker of its key, if that counts."""
        breaker = None
        if event.counted:
            self.counters["open_failed"] += 1
            working = self.slots.open_for(slot.key) > 0
            breaker = self._breakers.failed(slot, event, now, working=working, jitter=jitter)
        self.free(slot)
        return breaker

    def closed(self, slot: Slot, reason: CloseReason) -> None:
        """The resource was closed. What never opened is not counted."""
        if slot.state is not SlotState.OPENING:
            self.counters["closed"] += 1
            if reason in self.counters and reason != "moved":  # that was counted with the verdict
                self.counters[reason] += 1
        self.free(slot)

    def died(self, slot: Slot) -> None:
        """The process of the slot is dead."""
        self.counters["died_with_process"] += 1
        self.free(slot)

    def free(self, slot: Slot) -> None:
        """The end of the slot was proved."""
        if self.lanes is not None:
            self.lanes.lent(slot, None)
        self.slots.remove(slot)
        if self._breakers:
            self._breakers.probe_lost(slot.key, slot.number)
        self._outbox.write_down(Erase(slot.number))

    # --- counters ----------------------------------------------------------------------------------------

    def count(self, name: str) -> None:
        """Count something other than a transition of a slot."""
        self.counters[name] += 1

    def counted_earlier(self, counters: Mapping[str, int]) -> None:
        """Earlier servers had counted so much; what this one counts comes on top."""
        for name, count in counters.items():
            if name in self.counters and count > self.earlier[name]:
                self.counters[name] += count - self.earlier[name]
                self.earlier[name] = count

    # --- how it is done ----------------------------------------------------------------------------------

    def _record(self, slot: Slot) -> None:
        self._outbox.write_down(
            Record(self._pool, slot.key, slot.number, slot.process, slot.generation, self.budget)
        )

    def _tell_grant(self, slot: Slot, ticket: Ticket, opening_s: float, *, fresh: bool) -> None:
        grant = Grant(
            self._pool,
            slot.key,
            slot.number,
            ticket,
            slot.generation,
            fresh,
            slot.opened_before,
            opening_s,
            NO_GRANT if slot.instead_of is None else slot.instead_of.number,
        )
        self._outbox.tell(slot.process, grant)
