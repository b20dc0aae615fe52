r"""The books of one pool: an event becomes a transition of a slot or a verdict, and then all is settled.

    event --> PoolBooks --> Ledger            the transition, with record, message and counter
                  |    \--> Returns           a verdict on what was brought back, carried out here
                  v
               settle: serve those who wait, fill up to `min_size` (Service), ask for slots (Reclaimer), sweep (Eviction);
                       with the other pools of its budget, if it has one (BudgetBooks)

Every public method is told the time and what happened. Decisions are left in the outbox.
"""

from __future__ import annotations

import math

from mppool.core.breaker import Breakers
from mppool.core.budget import BudgetBooks
from mppool.core.capacity import Capacity
from mppool.core.control import Control
from mppool.core.decisions import Queued, RecordPool, Refuse
from mppool.core.declarations import Declarations
from mppool.core.events import (
    Checkout,
    Closed,
    Declaration,
    Event,
    Held,
    IdleTooLong,
    Opened,
    OpeningFailed,
    Resize,
    Returned,
)
from mppool.core.eviction import Eviction
from mppool.core.generations import Generations
from mppool.core.kinds import Kinds
from mppool.core.lanes import Lanes
from mppool.core.ledger import Ledger
from mppool.core.min_size import MinSize
from mppool.core.reclaim import Reclaimer
from mppool.core.refusals import Refusals
from mppool.core.returns import Moved, Returns
from mppool.core.service import Service
from mppool.core.share import ShareOfMachine
from mppool.core.shared import Shared
from mppool.core.sharing import OpeningTimes
from mppool.core.slot import Slot, SlotState
from mppool.core.table import SlotTable
from mppool.core.waiter import Waiter
from mppool.core.waiting import Waiting
from mppool.ids import ProcessId, Ticket


class PoolBooks:
    """One pool, over all processes and identities.

    budget: against which the slots count too; None: there is none. lanes: None: there are none.
    deadline: when `tick` is wanted next, as `Books` looked last.
    born: when the pool was declared first, as far as this server knows.
    """

    def __init__(self, declaration: Declaration, declared_at: float, shared: Shared) -> None:
        name = self.name = declaration.pool
        self._outbox, self._jitter = shared.outbox, shared.jitter
        self.slots = SlotTable(shared.slots, shared.granted)
        self.waiting = Waiting(self.slots.levels, self.slots.by_process_and_key, shared.waiters)
        self.breakers = Breakers(self.waiting.count_of_key)
        self.openings = OpeningTimes()
        self.declarations = Declarations(declaration, declared_at)
        self.kinds = Kinds(self.slots.levels)
        self.generations = Generations(name)
        self.control = Control(name, self.declarations, self.generations, self._outbox)
        self.capacity = Capacity(self.slots, self.breakers, shared.awaited)
        self.min_size = MinSize(name, self.capacity, self.declarations)
        self.ledger = Ledger(name, self.slots, self.breakers, self._outbox, shared.numbers)
        self.counters = self.ledger.counters
        self.returns = Returns(
            self.waiting, self.capacity, self.generations, self.openings, self.min_size
        )
        self.service = Service(
            self.waiting, self.capacity, self.min_size, self.generations, self._grant
        )
        self.budget: BudgetBooks | None = None
        self.lanes: Lanes | None = None
        self.reclaimer = Reclaimer(
            name, self.waiting, self.capacity, self.openings, self._outbox.attached
        )
        self.eviction = Eviction(self.slots, self.waiting, self.breakers)
        self.machine = ShareOfMachine(name, self.capacity, self._outbox)
        self.refusals = Refusals(self.waiting, self.capacity, self._outbox, self.machine.why)
        self.slots.level_changed = self._level_changed
        self.waiting.noted = self.breakers.waiters_changed
        self.born = declared_at + declaration.age
        self.deadline = math.inf
        self._settled_at = -math.inf
        self._configure()

    # --- what is declared and commanded ------------------------------------------------------------------

    def place_under(self, budget: BudgetBooks | None) -> None:
        """The slots count against this budget from now on, and no longer against another one."""
        if budget is self.budget:
            return
        if self.budget is not None:
            self.budget.leave(self)
        self.budget = budget
        self.ledger.counts_against("" if budget is None else budget.name)
        if budget is not None:
            budget.join(self)

    def declare(self, declaration: Declaration, process: ProcessId, now: float) -> None:
        """A process declares the pool."""
        if declaration.closed:
            self.declarations.forget(process)
            if not declaration.kind:
                return
        if self.control.declare(declaration, process, now):
            self._configure()
            self._settle(now)

    def restore(self, record: RecordPool) -> None:
        """Go on with what the journal says of the pool. What happens next makes it count."""
        self.control.restore(record)
        self._configure()

    def resize(self, event: Resize, now: float) -> None:
        """New bounds. What is open beyond a smaller cap goes when it is idle or released."""
        self.control.resize(event, now)
        self._configure()
        self._settle(now)

    def reset(self, now: float, over: float = 0.0, because: str = "") -> None:
        """A new generation: everything that was opened before goes when it is idle or released. See Reset."""
        if self.generations.was_said(because):
            return
        self.control.reset(now, over)
        self.breakers.clear()
        self._settle(now)

    def drain(self, process: ProcessId, generation: int | None, now: float) -> None:
        """Start a drain (None), or say how much of the one that ended at `generation` is left."""
        if generation is None:
            self.reset(now)
            generation = self.generations.current
        left = sum(slot.generation < generation for slot in self.slots)
        self.control.drained(process, generation, left)

    def close(self, now: float, *, reopened: bool = False) -> None:
        """Hand out nothing any more; what is out goes when it is released. reopened: hand out again."""
        if not reopened:
            self.refusals.refuse_all(f"pool {self.name!r} was closed")
            self.eviction.start_again()
        self.control.close(now, reopened=reopened)
        self._settle(now)

    def want_ready(self, process: ProcessId, now: float) -> None:
        """Fill up to `min_size` from now on, and say how far that has come."""
        self.min_size.want()
        self._settle(now)
        self._outbox.answer(process, self.min_size.readiness(closed=self.generations.closed))

    # --- checkouts ---------------------------------------------------------------------------------------

    def refuses_at_once(self, process: ProcessId, event: Checkout, now: float) -> Refuse | None:
        """What a checkout that waits for nobody and gets nothing is told. That changes nothing at all."""
        if event.timeout != 0 or self.capacity.is_below_cap() or self.kinds.set_aside:
            return None
        is_known = (process, event.ticket) in self.slots.by_ticket
        if is_known or self.generations.closed or self.breakers or self.waiting.by_name:
            return None
        if self.declarations.options.prefill and not self.min_size.wanted:
            return None
        return self.refusals.nothing_at_once(event, now)

    def checkout(self, process: ProcessId, event: Checkout, now: float) -> None:
        """A process wants a resource that it does not have. Answered at once."""
        if self.declarations.options.prefill:
            self.min_size.want()
        self.slots.give_up_openings(now)
        ticket, key = event.ticket, event.key
        name = (process, ticket)
        if name in self.waiting.by_name or name in self.slots.by_ticket:
            return  # a duplicate of a checkout that is answered already
        if self.generations.closed:
            self.refusals.refuse(process, ticket, "closed", f"pool {self.name!r} is closed")
            return
        if self.breakers and self._fails_fast(process, key, now):
            self.refusals.refuse(process, ticket, "open_failed", self.breakers[key].error)
            return
        if not self.waiting.by_name:  # nobody who might come first
            if self.capacity.may_open(process, key, now):
                self._grant(process, key, ticket, now, event.lane)
                return
            if event.timeout == 0:
                self._outbox.answer(process, self.refusals.nothing_at_once(event, now))
                return
        deadline = math.inf if event.timeout is None else now + event.timeout
        self.waiting.add(Waiter(process, ticket, key, now, deadline, self.name, event.lane))
        self._serve(now)
        if name in self.waiting.by_name:
            self._has_to_wait(process, event, now)

    def _fails_fast(self, process: ProcessId, key: str, now: float) -> bool:
        """Whether a checkout is told of the last error instead of waiting for the next attempt."""
        options = self.declarations.options
        permitted = self.breakers.permit(key, now)
        return options.fail_fast and not permitted and self.capacity.has_room(process, key)

    def _has_to_wait(self, process: ProcessId, event: Checkout, now: float) -> None:
        """A checkout stands in line and was not served: it is refused at once, or waits."""
        limit = self.declarations.options.max_waiting
        if event.timeout == 0:
            self.waiting.remove(process, event.ticket)
            self._outbox.answer(process, self.refusals.nothing_at_once(event, now))
        elif limit is not None and len(self.waiting) > limit:
            self.waiting.remove(process, event.ticket)
            self.ledger.count("refused")
            self.refusals.line_is_full(process, event, limit, now)
        else:
            self._outbox.tell(process, Queued(event.ticket, self.machine.why()))
            if self.budget is not None:
                self.budget.settle(self, now)
            else:
                self._ask_for_slots(now)

    def abandon(self, waiter: Waiter, now: float) -> None:
        """A waiter waits no longer."""
        self.waiting.remove(waiter.process, waiter.ticket)
        self._settle(now)

    def starves(self, waiter: Waiter, now: float) -> None:
        """A process says that nothing has been given back there for long."""
        if self.waiting.starves(waiter.process, waiter.ticket, now):
            self._settle(now)

    # --- slots -------------------------------------------------------------------------------------------

    def of_slot(self, slot: Slot, event: Event, now: float) -> None:
        """Something happened to a slot; what is not legal now is refused and changes nothing."""
        if slot.after(event) is None:
            return
        self.slots.give_up_openings(now)
        if isinstance(event, Returned):
            self._brought_back(slot, now, event.idle_s, exchanges=event.exchanges)
        elif isinstance(event, IdleTooLong):
            self._idle_too_long(slot, now)
        elif isinstance(event, Opened):
            self.openings.note(slot.key, event.seconds)
            self.ledger.opened(slot, now)
            self.machine.opened(slot.process)
        else:
            self._ended(slot, event, now)
        self._settle(now)

    def lent(self, slot: Slot, lane: str | None, now: float) -> None:
        """A process says for which lane it has lent a resource."""
        if self.lanes is not None and slot.state is not SlotState.CLOSING:
            self.lanes.lent(slot, lane)
            self._settle(now)

    def revoke(self, slot: Slot, error: str, now: float) -> None:
        """The grant could not be written down, so it was not given. What an inventory tells of is held all the same."""
        if slot.state is SlotState.OPENING and slot.ticket is not None:
            self.ledger.take_back(slot, now)
            text = f"pool {self.name!r}: the server cannot write its journal: {error}"
            self.refusals.refuse(slot.process, slot.ticket, "journal", text)

    def _ended(self, slot: Slot, event: Event, now: float) -> None:
        """The end of a slot was proved by its process."""
        before = slot.state
        if isinstance(event, OpeningFailed):
            breaker = self.ledger.failed(slot, event, now, self._jitter())
            if breaker and self.declarations.options.fail_fast and not breaker.permits(now):
                self.refusals.refuse_key(slot.key, breaker.error)
        elif isinstance(event, Closed):
            self.ledger.closed(slot, event.reason)
        else:
            self.ledger.free(slot)
        self._was_freed(slot.key, before)

    def _was_freed(self, key: str, before: SlotState) -> None:
        """A slot is free: if an open resource is gone, and was the last of its identity, that is evicted."""
        was_open = before is not SlotState.OPENING
        if was_open and not self.slots.by_key[key] and key != self.declarations.key:
            self.ledger.count("evicted_identities")

    def _brought_back(self, slot: Slot, now: float, idle_s: float, *, exchanges: bool) -> None:
        """Carry out the verdict. Exactly one of Close, Grant and Keep goes to the process of the slot."""
        process = slot.process
        if self.lanes is not None:
            self.lanes.lent(slot, None)
        verdict = self.returns.verdict(slot, now, idle_s)
        given = verdict in {"retired", "elsewhere"} or isinstance(verdict, Moved)
        if verdict == "retired":
            self.ledger.close(slot, "retired", now)
        elif verdict == "elsewhere":
            self.ledger.close(slot, "moved", now)
            if self.budget is not None:
                self.budget.gave(self, now)
        elif isinstance(verdict, Moved):
            successor = self.returns.successor(slot, verdict, now) if exchanges else None
            if successor is None:
                self.ledger.close(slot, "moved", now, verdict.to)
            else:
                self.waiting.served(process, successor.ticket)
                generation, opening_s = self.generations.of(successor.key), self.openings.measured()
                self.ledger.exchange(slot, successor, generation, opening_s, now)
                self._was_freed(slot.key, SlotState.OPEN)
            if verdict.to != process:
                self.waiting.gave(process, now)
        # A process that is not contended any more must know it before the resource lies on its shelf.
        if (told := self.reclaimer.brought_back(process, now, given=given)) is not None:
            self._outbox.tell(process, told)
        if isinstance(verdict, Waiter):
            self.waiting.served(process, verdict.ticket)
            self.ledger.give(slot, verdict.ticket, self.openings.measured(), verdict.lane)
        elif verdict is None:
            self.ledger.keep(slot)

    def _idle_too_long(self, slot: Slot, now: float) -> None:
        """It was idle for `max_idle`: it goes, but for `min_size`, and while somebody asks for its identity (`eviction`)."""
        if self.min_size.can_spare(slot) and not self.waiting.count_of_key(slot.key):
            self.ledger.close(slot, "expired_idle", now)
        else:
            self._brought_back(slot, now, math.inf, exchanges=False)

    def died(self, process: ProcessId, now: float) -> None:
        """Everything that the process had is free."""
        self._forget_process(process)
        for slot in self.slots.of(process):
            before = slot.state
            self.ledger.died(slot)
            self._was_freed(slot.key, before)
        self._settle(now)

    def detached(self, process: ProcessId, now: float) -> None:
        """The process cannot be told anything, but may live: its waiters go, its slots stay."""
        self._forget_process(process)
        self._settle(now)

    def attached(self, process: ProcessId, held: list[Held], now: float) -> None:
        """The inventory of a process overrules everything that was believed about it.

        It names everything that the process holds, or is opening or closing. A slot that it does not name is free:
        the process has given its word never to use an older grant (see `Attach`).
        """
        self.waiting.remove_process(process)
        self.reclaimer.forget(process)
        if held:
            self.min_size.want()
        self.slots.heard(process)
        numbers = {item.number for item in held}
        for slot in self.slots.of(process):
            if slot.number not in numbers:
                before = slot.state
                self.ledger.free(slot)
                self._was_freed(slot.key, before)
        for item in held:
            self.ledger.adopt(process, item, now)
        self.control.attached(process, held, now)
        for item in held:
            returned = self.slots.get(item.number) if item.state == "returned" else None
            if returned is not None and returned.process == process:
                self._brought_back(returned, now, 0.0, exchanges=False)
        self._settle(now)

    def _forget_process(self, process: ProcessId) -> None:
        self.waiting.remove_process(process)
        self.reclaimer.forget(process)
        self.declarations.forget(process)
        self.kinds.forget(process)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self.refusals.refuse_expired(now)
        self._settle(now)

    def next_deadline(self, now: float) -> float:
        """When `tick` has something to do although nothing happened; infinity if never.

        What has become due since all was settled last counts too: it is the next tick that does it.
        """
        if not (self.waiting.by_name or self.min_size.size or self.capacity.must_give()):
            return math.inf
        since = min(now, self._settled_at)
        times = [
            self.waiting.next_deadline(),
            self.slots.next_given_up() if self.capacity.opens_enough() else math.inf,
            self.reclaimer.next_deadline(since),
            self.min_size.next_deadline(since),
        ]
        if self.waiting:
            times.append(self.breakers.next_retry(since))
        if self.budget is not None:
            times.append(self.budget.next_deadline(since))
        return min(times)

    def _settle(self, now: float) -> None:
        """After every event: serve, fill up, ask for slots, sweep."""
        if self.budget is not None:
            self.budget.settle(self, now)
        else:
            self._serve(now)
            if self.min_size.size:
                self.service.fill(self.declarations.key, now)
            self.finish(now)

    def finish(self, now: float) -> None:
        """All that can be has been served: ask the processes for what is wanted of them, and sweep."""
        self._ask_for_slots(now)
        if self.breakers:
            self.eviction.sweep(now)
        self._settled_at = now

    def _ask_for_slots(self, now: float) -> None:
        for process, order in self.reclaimer.plan(now):
            self._outbox.tell(process, order)

    def _serve(self, now: float) -> None:
        """Give free slots to those who wait, as far as the bounds allow."""
        self.slots.give_up_openings(now)
        if self.budget is not None:
            self.budget.serve(now)
        elif self.waiting.by_name:
            self.service.serve(now)

    def take_slot(self, now: float) -> None:
        """The budget has a slot for this pool."""
        self.service.serve_one(self.declarations.key, now)

    def _grant(self, process: ProcessId, key: str, ticket: Ticket, now: float, lane: str) -> None:
        generation, opening_s = self.generations.of(key), self.openings.measured()
        self.ledger.grant(process, key, ticket, generation, opening_s, now, lane)

    def _configure(self) -> None:
        """Options and bounds that are in force go to those who apply them."""
        options, bounds = self.declarations.options, self.declarations.bounds
        self.capacity.configure(bounds.max_size.value, options)
        self.min_size.configure(bounds.min_size.value or 0)
        self.eviction.configure(options.max_idle)
        if options.lanes and self.lanes is not None:
            self.lanes.configure(options.lanes)
        elif options.lanes or self.lanes is not None:
            self.lanes = Lanes(self.capacity, options.lanes) if options.lanes else None
            self.ledger.lanes = self.lanes
            self.waiting.has_lanes(self.lanes)

    def _level_changed(self, process: ProcessId, key: str) -> None:
        self.waiting.level_changed(process, key)
        self.reclaimer.level_changed(process)
