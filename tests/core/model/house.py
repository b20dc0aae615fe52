"""Pools that share a budget, and processes that use them, without channels: whatever is decided is done at once.

What channels do to one pool is in `world`. Here several pools compete, processes die, servers follow each other.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from mppool.core.books import Books
from mppool.core.decisions import (
    Close,
    Erase,
    Grant,
    Keep,
    PoolChanged,
    Reclaim,
    Record,
    RecordBudget,
    RecordPool,
    Refuse,
)
from mppool.core.events import (
    Abandoned,
    Attach,
    BudgetDeclaration,
    Checkout,
    Closed,
    Declaration,
    Died,
    Held,
    Lent,
    Opened,
    OpeningFailed,
    Remembered,
    Returned,
)
from mppool.ids import GrantNumber, ProcessId, Session, Ticket
from mppool.options import PoolOptions
from tests.core.model.parts import Violation

BUDGET = "db"
PATIENT_S = 60.0


class Thing:
    """One resource, in its process. state: opening, used, idle, returned or closing."""

    def __init__(self, process: ProcessId, grant: Grant, now: float) -> None:
        self.process = process
        self.pool, self.key, self.number = grant.pool, grant.key, grant.number
        self.lane: str | None = None
        self.state = "opening"
        self.since = self.began = now


class House:
    """Books, a journal, processes; `do` says an event and carries out all that follows."""

    def __init__(
        self, cap: int, pools: dict[str, PoolOptions], processes: int = 2, opening_s: float = 0.01
    ) -> None:
        self.now = 1000.0
        self.cap = cap
        self.pools = pools
        self.opening_s = opening_s
        self.books = Books(1, jitter=lambda: 0.0)
        self.sessions = 0
        self.tickets = 0
        self.slots: dict[GrantNumber, Record] = {}
        self.records: dict[str, RecordPool] = {}
        self.budgets: dict[str, RecordBudget] = {}
        self.things: dict[GrantNumber, Thing] = {}
        self.waiting: dict[tuple[ProcessId, Ticket], tuple[str, str, str | None]] = {}
        self.contended: set[tuple[ProcessId, str]] = set()
        self.attached: set[ProcessId] = set()
        # The pools that a process has declared, where these are not all.
        self.knows: dict[ProcessId, str] = {}
        self.living = [ProcessId(101 + i, 1) for i in range(processes)]
        self.todo: deque[tuple[ProcessId, Any]] = deque()
        self.held_before = 0
        for process in self.living:
            self.attach(process)

    # --- saying ------------------------------------------------------------------------------------------------

    def do(self, process: ProcessId, event: Any) -> None:
        """Say something, and do what is decided, and what follows from that."""
        self.todo.append((process, event))
        while self.todo:
            process, event = self.todo.popleft()
            if isinstance(event, Attach) or process in self.attached or isinstance(event, Died):
                session = self.books.session_of(process) or Session(0)
                if isinstance(event, Attach):
                    self.sessions += 1
                    session = Session(self.sessions)
                self._carry_out(self.books.apply(process, session, event, self.now))
        self.check()

    def command(self, event: Any) -> None:
        self._carry_out(self.books.command(self.living[0], event, self.now))
        while self.todo:
            self.do(*self.todo.popleft())
        self.check()

    def attach(self, process: ProcessId) -> None:
        names = {"opening": "opening", "returned": "returned", "closing": "closing"}
        held = [
            Held(
                thing.pool,
                thing.key,
                thing.number,
                names.get(thing.state, "open"),  # type: ignore[arg-type]
                0,
                0,
                thing.lane if thing.state == "used" else None,
            )
            for thing in self.things.values()
            if thing.process == process
        ]
        self.contended -= {(process, pool) for pool in self.pools}
        self.attached.add(process)
        only = self.knows.get(process)
        said = [one for one in self.declarations() if only in (None, one.pool)]
        self.do(process, Attach("", said, held))
        for name in [name for name in self.waiting if name[0] == process]:
            pool, key, lane = self.waiting.pop(name)
            self.want(process, pool, key, lane)

    def declarations(self) -> list[Declaration]:
        budget = BudgetDeclaration(BUDGET, self.cap, self.now)  # all of them as old as the house
        return [
            Declaration(
                name, options, self.now, "k", budget=budget if options.budget == BUDGET else None
            )
            for name, options in self.pools.items()
        ]

    # --- what processes do ---------------------------------------------------------------------------------------

    def want(
        self,
        process: ProcessId,
        pool: str,
        key: str = "k",
        lane: str | None = None,
        timeout: float | None = None,
    ) -> Ticket:
        """A checkout: from the shelf, else from the books."""
        for thing in self.things.values():
            mine = (thing.process, thing.pool, thing.key) == (process, pool, key)
            if mine and thing.state == "idle":
                self._use(thing, lane)
                if (process, pool) in self.contended and self.pools[pool].lanes:
                    self.do(process, Lent([(thing.number, lane or "")]))
                return Ticket(0)
        self.tickets += 1
        ticket = Ticket(self.tickets)
        self.waiting[process, ticket] = (pool, key, lane)
        if process in self.attached:
            self.do(process, self._checkout(pool, key, ticket, timeout, lane))
        return ticket

    def _checkout(
        self, pool: str, key: str, ticket: Ticket, timeout: float | None, lane: str | None
    ) -> Checkout:
        return Checkout(pool, key, ticket, timeout, lane or "")

    def _use(self, thing: Thing, lane: str | None) -> None:
        thing.state, thing.since, thing.lane = "used", self.now, lane

    def _tell_what_is_lent(self, process: ProcessId, pool: str) -> None:
        lent = [
            (thing.number, (thing.lane or "") if thing.state == "used" else None)
            for thing in self.things.values()
            if (thing.process, thing.pool) == (process, pool) and thing.state in ("used", "idle")
        ]
        self.todo.append((process, Lent(lent)))

    def opens(self, thing: Thing) -> None:
        self._use(thing, thing.lane)
        self.do(thing.process, Opened(thing.number, self.opening_s))

    def fails(self, thing: Thing) -> None:
        del self.things[thing.number]
        self.do(thing.process, OpeningFailed(thing.number, "no"))

    def release(self, thing: Thing) -> None:
        """Back to the shelf, or to the books where somebody waits."""
        thing.state, thing.since = "idle", self.now
        waits = any(
            (process, *waiter[:2]) == (thing.process, thing.pool, thing.key)
            for (process, _), waiter in self.waiting.items()
        )
        if waits or (thing.process, thing.pool) in self.contended:
            self.bring_back(thing)

    def bring_back(self, thing: Thing) -> None:
        if thing.process in self.attached:
            thing.state = "returned"
            self.do(thing.process, Returned(thing.number, self.now - thing.since))

    def closes(self, thing: Thing) -> None:
        del self.things[thing.number]
        self.do(thing.process, Closed(thing.number, "discarded"))

    def gives_up(self, name: tuple[ProcessId, Ticket]) -> None:
        del self.waiting[name]
        self.do(name[0], Abandoned(name[1]))

    def dies(self, process: ProcessId) -> None:
        """Another one takes its place."""
        self._forget(process)
        self.do(process, Died())
        self.attached.discard(process)
        heir = ProcessId(process.pid + 100, process.birth)
        self.living[self.living.index(process)] = heir
        self.attach(heir)

    def _forget(self, process: ProcessId) -> None:
        self.things = {n: one for n, one in self.things.items() if one.process != process}
        self.waiting = {name: one for name, one in self.waiting.items() if name[0] != process}

    def server_dies(self) -> None:
        """The next one has the journal. Processes attach one by one."""
        self.attached.clear()
        for thing in self.things.values():
            if thing.state == "returned":
                thing.state = "idle"
        self.books = Books(self.books.epoch + 1, jitter=lambda: 0.0)
        slots = [
            Remembered(r.pool, r.key, r.number, r.process, r.generation, r.budget)
            for r in self.slots.values()
        ]
        records = list(self.records.values())
        self.books.restore(records, slots, set(), self.now, list(self.budgets.values()))

    # --- what is decided -----------------------------------------------------------------------------------------

    def _carry_out(self, decisions: list[tuple[ProcessId | None, Any]]) -> None:
        for process, decision in decisions:
            if process is None:
                self._write(decision)
            elif isinstance(decision, Grant):
                self._granted(process, decision)
            elif isinstance(decision, Keep):
                self.things[decision.number].state = "idle"
            elif isinstance(decision, Close) and decision.number in self.things:
                self.things[decision.number].state = "closing"
            elif isinstance(decision, PoolChanged) and decision.closed:
                for thing in self.things.values():
                    if (thing.process, thing.pool, thing.state) == (process, decision.pool, "idle"):
                        thing.state = "closing"
            elif isinstance(decision, Refuse):
                self.waiting.pop((process, decision.ticket), None)
            elif isinstance(decision, Reclaim):
                self._reclaimed(process, decision)

    def _write(self, decision: Any) -> None:
        if isinstance(decision, Record):
            self.slots[decision.number] = decision
        elif isinstance(decision, Erase):
            del self.slots[decision.number]
        elif isinstance(decision, RecordPool):
            self.records[decision.pool] = decision
        elif isinstance(decision, RecordBudget):
            self.budgets[decision.budget] = decision

    def _granted(self, process: ProcessId, grant: Grant) -> None:
        waiter = self.waiting.pop((process, grant.ticket), None)
        thing = self.things.get(grant.number)
        if thing is None:
            thing = self.things[grant.number] = Thing(process, grant, self.now)
            thing.lane = waiter[2] if waiter else None
        elif waiter is None:
            thing.state = "idle"  # it had given up
        else:
            self._use(thing, waiter[2])

    def _reclaimed(self, process: ProcessId, reclaim: Reclaim) -> None:
        name = (process, reclaim.pool)
        (self.contended.add if reclaim.contended else self.contended.discard)(name)
        if reclaim.contended and self.pools[reclaim.pool].lanes:
            self._tell_what_is_lent(*name)
        idle = [
            thing
            for thing in self.things.values()
            if (thing.process, thing.pool, thing.state) == (*name, "idle")
            and self.now - thing.since >= reclaim.idle_for
        ]
        for thing in sorted(idle, key=lambda one: one.since)[: reclaim.sweep]:
            thing.state = "returned"
            self.todo.append((process, Returned(thing.number, self.now - thing.since)))

    # --- time ----------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Time passes, with a tick at every deadline."""
        end = self.now + seconds
        for _ in range(10_000):
            due = self.books.next_deadline(self.now)
            if due is None or due > end:
                self.now = end
                return
            if due <= self.now:
                raise Violation("a tick that wants another one at once")
            self.now = due
            self._tick()
        raise Violation("ten thousand deadlines")

    def _tick(self) -> None:
        self._carry_out(self.books.tick(self.now))
        while self.todo:
            self.do(*self.todo.popleft())
        self.check()

    def until_served(self, *, use_s: float = 0.01) -> None:
        """Everybody gives back soon, and nothing fails: nobody may wait for ever."""
        for process in self.living:
            if process not in self.attached:
                self.attach(process)
        end = self.now + PATIENT_S
        while self.waiting or any(thing.state != "idle" for thing in self.things.values()):
            if self.now > end:
                raise Violation(f"STARVED: {self.waiting}")
            self.wait(use_s)
            self.step()

    def step(self) -> None:
        """What is being opened or closed is; what is in use is given back."""
        for thing in list(self.things.values()):
            if thing.number not in self.things:
                continue
            if thing.state == "opening" and self.now - thing.began >= self.opening_s:
                self.opens(thing)
            elif thing.state == "closing":
                self.closes(thing)
            elif thing.state == "used":
                self.release(thing)

    # --- what must be --------------------------------------------------------------------------------------------

    def held(self, pool: str | None = None) -> int:
        """What all processes together have open, or are opening or closing."""
        return sum(thing.pool == pool or pool is None for thing in self.things.values())

    def check(self) -> None:
        """Never above the budget; where it was lowered, never more than before."""
        held = sum(self.pools[thing.pool].budget == BUDGET for thing in self.things.values())
        cap = self.cap_in_force()
        if held > max(cap, self.held_before):
            raise Violation(f"OVER the budget: {held} of {cap}")
        self.held_before = held
        for budget in self.books.budgets:
            known = sum(len(pool.slots) for pool in budget.members.values())
            known += self.books._memory.count_against(budget.name)
            if budget.total.size != known:
                raise Violation(f"the budget counts {budget.total.size} of {known}")
        if not self.todo and any(thing.state == "returned" for thing in self.things.values()):
            raise Violation("a resource that was brought back is not answered")

    def cap_in_force(self) -> int:
        """As the books have it, or as it was declared before anybody has."""
        return next((b.cap for b in self.books.budgets if b.name == BUDGET), math.inf)  # type: ignore[return-value]
