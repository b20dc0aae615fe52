"""All books of one server: which processes are attached, and which event belongs to which pool.

`apply` is the only door. It takes who says it, under which session, what, and when; it gives back the
decisions in the order in which they must be carried out. A word from an old session is void.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from mppool.core.budgets import Budgets
from mppool.core.decisions import Addressed, Ask, Close, Erase, RecordBudget, RecordPool, Refuse
from mppool.core.events import (
    Abandoned,
    Attach,
    BackendFailed,
    CallEnded,
    Checkout,
    Closed,
    ClosePool,
    Declaration,
    Declare,
    Declined,
    Detached,
    Died,
    Drain,
    Event,
    Held,
    IdleTooLong,
    JournalFailed,
    Lent,
    NotMine,
    Opened,
    OpeningFailed,
    Remembered,
    Reset,
    Resize,
    ResizeBudget,
    Returned,
    Share,
    Starves,
    TokenReplaced,
    WantReady,
)
from mppool.core.figures import all_figures
from mppool.core.memory import Memory
from mppool.core.outbox import Outbox
from mppool.core.pool import PoolBooks
from mppool.core.share import Demand, Shares
from mppool.core.shared import Shared
from mppool.core.slot import Slot, SlotState
from mppool.core.token_books import TOKEN_EVENTS, TokenBooks
from mppool.core.tokens import ForgetTokens, TokenEvent
from mppool.core.waiter import Waiter
from mppool.ids import GrantNumber, GrantNumbers, ProcessId, Session, Ticket

Command = Resize | ResizeBudget | Reset | Drain | ClosePool | WantReady | ForgetTokens

_SLOT_EVENTS: tuple[type[Event], ...] = (
    Opened,
    OpeningFailed,
    Declined,
    Returned,
    IdleTooLong,
    Closed,
    NotMine,
)


class Books:
    """The authority. Not thread-safe: its owner applies one event after the other.

    epoch: counts the servers of one manager; grant numbers begin with it.
    jitter: gives floats within [0, 1), for back-offs.
    """

    def __init__(self, epoch: int, *, jitter: Callable[[], float] = lambda: 0.5) -> None:
        self.epoch = epoch
        self.pools: dict[str, PoolBooks] = {}
        self._sessions: dict[ProcessId, Session] = {}
        self._outbox = Outbox()
        # The slots and waiters of all pools, so that an event finds its pool at once.
        self._slots: dict[GrantNumber, Slot] = {}
        self._granted: dict[tuple[ProcessId, Ticket], Slot] = {}
        self._waiters: dict[tuple[ProcessId, Ticket], Waiter] = {}
        # After a torn journal: see `Capacity`.
        self._awaited: set[ProcessId] = set()
        self._shared = Shared(
            self._outbox,
            GrantNumbers(epoch),
            jitter,
            self._slots,
            self._granted,
            self._waiters,
            self._awaited,
        )
        self.tokens = TokenBooks(self._outbox, epoch)
        # Which pools know of a process. Its end, and its inventory, concern no others.
        self._known_in: dict[ProcessId, dict[str, PoolBooks]] = {}
        # A heap of (deadline, name), and those pools whose deadlines may be others by now.
        self._deadlines: list[tuple[float, str]] = []
        self._touched: dict[str, PoolBooks] = {}
        self._memory = Memory()
        self._shares = Shares()
        self.budgets = Budgets(self._outbox, self._memory, self._shares, self._touch)
        self._counted_earlier: dict[str, Mapping[str, int]] = {}
        self._born: dict[str, float] = {}

    def apply(
        self, process: ProcessId, session: Session, event: Event, now: float
    ) -> list[Addressed]:
        """Take in what happened and return what must be done, in order."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            if self._sessions.get(process) == session:
                handler(self, process, event, now)
        elif isinstance(event, Attach):
            # Else a later session is attached already.
            if session >= self._sessions.get(process, session):
                self._attach(process, session, event, now)
        elif isinstance(event, Died):
            self._died(process, now)
        elif isinstance(event, JournalFailed):
            self._journal_failed(event, now)
        return self._outbox.take_out()

    def tick(self, now: float) -> list[Addressed]:
        """Carry out everything that has become due."""
        due: dict[str, PoolBooks] = {}
        self._look_at_deadlines(now)
        while self._deadlines and self._deadlines[0][0] <= now:
            _, name = heapq.heappop(self._deadlines)
            due[name] = self.pools[name]
        for pool in due.values():
            self._touch(pool)
            pool.tick(now)
        self.tokens.tick(now)
        return self._outbox.take_out()

    def next_deadline(self, now: float) -> float | None:
        """When `tick` is wanted next, or None if only an event can change anything."""
        self._look_at_deadlines(now)
        at = self.tokens.next_deadline()
        if self._deadlines:
            at = min(at, self._deadlines[0][0])
        return None if at == math.inf else at

    def _look_at_deadlines(self, now: float) -> None:
        """Bring the heap up to date: the next deadline stands in front of it."""
        heap = self._deadlines
        for name, pool in self._touched.items():
            pool.deadline = pool.next_deadline(now)
            if pool.deadline != math.inf:
                heapq.heappush(heap, (pool.deadline, name))
        self._touched.clear()
        while heap and self.pools[heap[0][1]].deadline != heap[0][0]:
            heapq.heappop(heap)
        if len(heap) > 4 * len(self.pools) + 64:
            heap[:] = [(p.deadline, n) for n, p in self.pools.items() if p.deadline != math.inf]
            heapq.heapify(heap)

    def _touch(self, pool: PoolBooks) -> PoolBooks:
        """Something happens to a pool, so that its next deadline may be another."""
        self._touched[pool.name] = pool
        return pool

    def _knows(self, pool: PoolBooks, process: ProcessId) -> None:
        """A pool has to do with a process from now on."""
        self._known_in.setdefault(process, {})[pool.name] = pool

    def take_shares(
        self, shares: Iterable[Share], of_new: Share | None, now: float
    ) -> list[Addressed]:
        """Other machines leave so much of each pool and budget to this one. of_new: of one that is declared from now on."""
        said = list(shares)
        self._shares.take(said, of_new)
        for share in said:
            self.budgets.take_share(share, now)
            if (pool := self.pools.get(share.pool)) is not None:
                self._touch(pool).machine.take(share)
                pool.tick(now)
        return self._outbox.take_out()

    def demands(self) -> dict[str, Demand]:
        """What each pool and budget has and could use, of those included that only the journal tells of."""
        pools = {
            name: pool.machine.demand(len(pool.waiting), pool.min_size.target())
            for name, pool in self.pools.items()
        }
        return self._memory.demands() | pools | self.budgets.demands()

    def forgive(self, pool: str) -> None:
        """Forget that openings failed: a process that wants a resource next may try at once."""
        if pool in self.pools:
            self._touch(self.pools[pool]).breakers.clear()

    def command(self, process: ProcessId, event: Command, now: float) -> list[Addressed]:
        """A command from anybody, attached or not.

        Raises KeyError for a pool or a budget that nobody has declared. The answer to Drain is addressed to `process`.
        """
        if isinstance(event, ForgetTokens):
            self.tokens.forget(event.identity, now)
        elif isinstance(event, ResizeBudget):
            self.budgets.resize(event, now)
        else:
            self._command(self._touch(self.pools[event.pool]), process, event, now)
        return self._outbox.take_out()

    def restore(
        self,
        pools: list[RecordPool],
        slots: list[Remembered],
        awaited: set[ProcessId],
        now: float,
        budgets: Iterable[RecordBudget] = (),
    ) -> None:
        """Continue the books of the previous server, as its journal has them.

        awaited: after a torn journal, the living processes that may hold what it does not say.
        """
        self._memory.take_in(pools, budgets, slots)
        self._awaited.update(awaited)

    def successor(self, now: float) -> Books:
        """The books of the next epoch, where these cannot be trusted any more.

        They know of each pool what the next server would know, and go on counting. What processes hold they
        hear from the processes.
        """
        books = Books(self.epoch + 1, jitter=self._shared.jitter)
        pools = [pool.control.record() for pool in self.pools.values()]
        books.restore(pools, [], set(), now, self.budgets.records())
        books.counted_earlier({name: pool.counters for name, pool in self.pools.items()})
        books._born = {name: pool.born for name, pool in self.pools.items()}
        return books

    def counted_earlier(self, counters: Mapping[str, Mapping[str, int]]) -> None:
        """What earlier servers had counted, by pool."""
        for name, counts in counters.items():
            self._counted_earlier[name] = counts
            if name in self.pools:
                self.pools[name].ledger.counted_earlier(counts)

    def session_of(self, process: ProcessId) -> Session | None:
        """The current session of a process that is attached."""
        return self._sessions.get(process)

    def slots_held(self, process: ProcessId | None = None) -> int:
        """Slots that a process holds, or all processes, including those only the journal tells of."""
        pools = self.pools if process is None else self._known_in.get(process, {})
        held = sum(
            len(pool.slots) if process is None else pool.slots.levels[process]
            for pool in pools.values()
        )
        return held + self._memory.count(process)

    def snapshot(self) -> dict[str, Any]:
        """JSON-compatible figures of all pools and processes."""
        labels = {one: self._outbox.labels.get(one, "") for one in self._sessions}
        return {"epoch": self.epoch, **all_figures(labels, self.pools, self.budgets)}

    def _checkout(self, process: ProcessId, event: Checkout, now: float) -> None:
        pool = self.pools.get(event.pool)
        if pool is None:
            text = f"no attached process has declared a pool {event.pool!r}"
            self._outbox.answer(process, Refuse(event.ticket, "unknown_pool", text))
        elif (others := pool.kinds.set_aside) and (admitted := pool.kinds.admitted(process, now)):
            self._declare(admitted, process, now)
            self._checkout(process, event, now)
        elif others and (why_not := pool.kinds.why_not(process)):
            self._outbox.answer(process, Refuse(event.ticket, "mismatch", why_not))
        else:
            self._knows(pool, process)
            self._touch(pool).checkout(process, event, now)

    def refuses_at_once(
        self, process: ProcessId, session: Session, event: Checkout, now: float
    ) -> Refuse | None:
        """What `apply` would answer, where that is a plain refusal, which changes nothing; None: apply it."""
        pool = self.pools.get(event.pool) if self._sessions.get(process) == session else None
        return None if pool is None else pool.refuses_at_once(process, event, now)

    def _abandoned(self, process: ProcessId, event: Abandoned, now: float) -> None:
        self._abandon(process, event.ticket, now)
        self.tokens.abandon(process, event.ticket)

    def _starves(self, process: ProcessId, event: Starves, now: float) -> None:
        waiter = self._waiters.get((process, event.ticket))
        if waiter is not None:
            self._touch(self.pools[waiter.pool]).starves(waiter, now)

    def _lent(self, process: ProcessId, event: Lent, now: float) -> None:
        for number, lane in event.lanes:
            slot = self._slots.get(number)
            if slot is not None and slot.process == process:
                self._touch(self.pools[slot.pool]).lent(slot, lane, now)

    def _call_ended(self, process: ProcessId, event: CallEnded, now: float) -> None:
        waited = self._abandon(process, event.ticket, now)
        if self.tokens.call_ended(process, event.ticket, now) or waited:
            self._outbox.ask_again(process, event.ticket)
        slot = self._granted.get((process, event.ticket))
        if slot is not None and slot.state is SlotState.OPENING:
            self._outbox.answer(process, Ask(slot.number))

    def _abandon(self, process: ProcessId, ticket: Ticket, now: float) -> bool:
        """Whether it waited."""
        waiter = self._waiters.get((process, ticket))
        if waiter is not None:
            self._touch(self.pools[waiter.pool]).abandon(waiter, now)
        return waiter is not None

    def _backend_failed(self, process: ProcessId, event: BackendFailed, now: float) -> None:
        if event.pool in self.pools:
            pool = self._touch(self.pools[event.pool])
            pool.control.backend_failed(event)
            pool.tick(now)

    def _token_replaced(self, process: ProcessId, event: TokenReplaced, now: float) -> None:
        if event.pool in self.pools:
            self.pools[event.pool].control.token_replaced(event)

    def _declared(self, process: ProcessId, event: Declare, now: float) -> None:
        self._declare(event.declaration, process, now)

    def _detached(self, process: ProcessId, event: Detached, now: float) -> None:
        self._sessions.pop(process, None)
        self._outbox.detach(process)
        self.tokens.gone(process, now)
        for pool in self._known_in.get(process, {}).values():
            self._touch(pool).detached(process, now)

    def _token_event(self, process: ProcessId, event: TokenEvent, now: float) -> None:
        self.tokens.apply(process, event, now)

    def _slot_event(self, process: ProcessId, event: Any, now: float) -> None:
        slot = self._slots.get(event.number)
        if slot is not None and slot.process == process:
            self._touch(self.pools[slot.pool]).of_slot(slot, event, now)
        elif isinstance(event, Returned):
            # It holds something that is in no books, so it is over the cap.
            self._outbox.answer(process, Close(event.number, "retired"))

    def _attach(self, process: ProcessId, session: Session, event: Attach, now: float) -> None:
        self._sessions[process] = session
        self._outbox.attach(process, event.label)
        self.tokens.attached(process)
        # Nothing is granted before all is taken in: it would be missing in the inventory, and be taken for given up.
        was_awaited = process in self._awaited
        self._awaited.add(process)
        for declaration in event.declarations:
            self._declare(declaration, process, now)
        by_pool: dict[str, list[Held]] = {name: [] for name in self._known_in.get(process, {})}
        for item in event.held:
            if item.pool in self.pools:
                by_pool.setdefault(item.pool, []).append(item)
        for name, held in by_pool.items():
            self._knows(self.pools[name], process)
            self._touch(self.pools[name]).attached(process, held, now)
        self._forget_remembered(process, now)
        self._no_longer_awaited(process, now, self.pools if was_awaited else by_pool)

    def _declare(self, declaration: Declaration, process: ProcessId, now: float) -> None:
        if declaration.budget is not None:
            self.budgets.declare(declaration.budget, declaration.pool, process, now)
        if declaration.pool not in self.pools:
            self._new_pool(declaration, now)
        pool = self._touch(self.pools[declaration.pool])
        self._knows(pool, process)
        others = pool.kinds.take(process, declaration, now)
        pool.declarations.forget_all(others)
        if process not in others:
            self.budgets.place(pool, declaration, now)
            pool.declare(declaration, process, now)

    def _new_pool(self, declaration: Declaration, now: float) -> None:
        name = declaration.pool
        pool = PoolBooks(declaration, now - declaration.age, self._shared)
        self.pools[name] = pool
        record, slots = self._memory.recall_pool(name)
        if record is not None:
            pool.restore(record)
        pool.ledger.counted_earlier(self._counted_earlier.get(name, {}))
        pool.born = self._born.get(name, pool.born)
        share = self._shares.of(name)
        if share is not None:
            pool.capacity.take_share(share)
        self.budgets.place(pool, declaration, now)
        for item in slots:
            self._knows(pool, item.process)
            pool.ledger.remember(item, now)
        self.budgets.claimed(Counter(item.budget for item in slots if item.budget), now)

    def _died(self, process: ProcessId, now: float) -> None:
        self._sessions.pop(process, None)
        self._outbox.forget(process)
        self.tokens.gone(process, now)
        self._forget_remembered(process, now)
        for pool in self._known_in.pop(process, {}).values():
            self._touch(pool).died(process, now)
        self._no_longer_awaited(process, now, self.pools)

    def _forget_remembered(self, process: ProcessId, now: float) -> None:
        """Slots of pools that nobody has declared: gone with their process, or told by its inventory."""
        numbers, counted = self._memory.forget(process)
        for number in numbers:
            self._outbox.write_down(Erase(number))
        self.budgets.claimed(counted, now)

    def _no_longer_awaited(self, process: ProcessId, now: float, pools: Iterable[str]) -> None:
        if process in self._awaited:
            self._awaited.discard(process)
            for name in () if self._awaited else pools:
                self._touch(self.pools[name]).tick(now)

    def _journal_failed(self, event: JournalFailed, now: float) -> None:
        slot = self._slots.get(event.number)
        if slot is not None:
            self._touch(self.pools[slot.pool]).revoke(slot, event.error, now)

    def _command(self, pool: PoolBooks, process: ProcessId, event: Command, now: float) -> None:
        if isinstance(event, Resize):
            pool.resize(event, now)
        elif isinstance(event, Reset):
            pool.reset(now, event.over, event.because)
        elif isinstance(event, Drain):
            pool.drain(process, event.generation, now)
        elif isinstance(event, WantReady):
            pool.want_ready(process, now)
        elif isinstance(event, ClosePool):
            pool.close(now, reopened=event.reopened)

    _handlers: ClassVar[dict[type[Event], Callable[[Books, ProcessId, Any, float], None]]] = {
        Checkout: _checkout,
        **dict.fromkeys(_SLOT_EVENTS, _slot_event),
        Abandoned: _abandoned,
        CallEnded: _call_ended,
        Starves: _starves,
        Lent: _lent,
        BackendFailed: _backend_failed,
        TokenReplaced: _token_replaced,
        Declare: _declared,
        Detached: _detached,
        **dict.fromkeys(TOKEN_EVENTS, _token_event),
    }
