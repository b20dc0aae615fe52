"""Tasks of an event loop that wait for resources, in the same lines as threads.

A task waits for a future. Whatever else a waiting thread does for itself, its loop's `Desk` does for all tasks that wait
for a key: it looks when the books have to be asked, hands out what lies on the shelf, and says when the key starves.
The books are asked by one thread of the process (`Member.asker`), so a server that does not answer keeps no loop.

Tasks are served in the order in which they have come. Unlike a thread, a task costs hardly anything to wake, so what is
given back goes straight to the next one.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from mppool.core.decisions import Grant, Queued, Refuse
from mppool.core.events import Abandoned, Checkout, Starves
from mppool.link.connection import ASK_GRACE_S, SESSION_PAUSE_S, SessionLost
from mppool.logs import Log
from mppool.process.waiter import LocalWaiter, give_to_oldest
from mppool.rendezvous.readiness import NotReadyYet
from mppool.worker.deadlines import Deadlines
from mppool.worker.inventory import PoolEntry
from mppool.worker.opening import Failure, open_beside

if TYPE_CHECKING:
    from mppool.ids import Ticket
    from mppool.worker.demand import Demand
    from mppool.worker.local_pool import LocalPool

T = TypeVar("T")

log = Log("mppool")

running_loop = asyncio._get_running_loop
"""Of the calling thread; None: it runs none. Quicker than the public function, which raises."""

ASK_AGAIN_S = 0.05
"""Books that have not answered are asked again after so long."""

MOST_TICKETS = 1000
"""So many questions of one pool are on their way at a time, where it has no cap."""


class TaskWaiter(LocalWaiter):
    """A waiting task. Any thread may give to it and poke it; all else happens in its loop.

    timeout: what its deadline was in seconds when it began. unanswered: why the
        books have not answered, where they have not.
    """

    __slots__ = ("_answered", "_desk", "timeout", "unanswered")

    _sleeps = False

    def __init__(
        self,
        desk: Desk,
        key: str,
        deadline: float | None,
        timeout: float | None,
        principal: Any = None,
        *,
        insists: bool = False,
        lane: str = "",
    ) -> None:
        ticket = desk.local.member.next_ticket()
        super().__init__(ticket, key, principal, insists=insists, lane=lane)
        self._desk = desk
        self._answered: asyncio.Future[None] = desk.loop.create_future()
        self.deadline = deadline
        self.timeout = timeout
        self.unanswered = ""

    def give(self, answer: Any) -> bool:
        """See LocalWaiter."""
        mine = [answer]
        if self._settled.setdefault("answer", mine) is not mine:
            return False
        if running_loop() is self._desk.loop:
            self._wake()
            return True
        try:
            self._desk.loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop was closed with this task in it
            try:
                mine.pop()
            except IndexError:
                return True  # its task was finalized meanwhile, and has handed it on
            return False
        return True

    def _wake(self) -> None:
        if not self._answered.done():
            self._answered.set_result(None)

    def context_to_open_in(self) -> Context:
        """See LocalWaiter; the open hook of a pool whose resources belong to loops is told which loop it is."""
        context = super().context_to_open_in()
        if self._desk.enter is not None:
            context.run(self._desk.enter)
        return context

    def poke(self) -> None:
        """See LocalWaiter: its loop's desk looks around for it."""
        self._desk.look_soon(self.key)

    async def answer(self, until: float | None) -> Any:
        """The answer; None at that instant (None: never)."""
        if not self._settled:
            await self.sleep(until)
        return self.woken()

    def sleep(self, until: float | None) -> asyncio.Future[None]:
        """What a task awaits that has no answer yet; set at that instant at the latest (None: never)."""
        if until is not None:
            self._desk.deadlines.begins(self._answered, until)
        return self._answered

    def woken(self) -> Any:
        """The answer. None: the time has passed, and it may sleep again."""
        if self._settled:
            return self.withdraw()
        self._answered = self._desk.loop.create_future()
        return None

    def left(self) -> float | None:
        """Seconds that it still waits."""
        return None if self.deadline is None else max(0.0, self.deadline - monotonic())


class Desk:
    """What one event loop does for its tasks that wait for resources of one pool.

    Everything happens in the loop but for `look_soon`, which any thread may call, and `_ask`, which the asker's thread
    does. `_due` may be stale: a look too many does no harm.
    enter: called in the context of each opening for one of these tasks.
    deserted: waiters whose tasks were finalized instead of being finished; appended to in finalizers, where no lock may
        be taken, and emptied by the background thread (see `Keeper`).
    """

    def __init__(
        self,
        local: LocalPool,
        loop: asyncio.AbstractEventLoop,
        enter: Callable[[], object] | None = None,
    ) -> None:
        self.local = local
        self.loop = loop
        self.enter = enter
        self.deserted: deque[tuple[TaskWaiter, Any]] = deque()
        self._due: set[str] = set()
        self._timers: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        self.deadlines = Deadlines(loop)

    # --- looking ------------------------------------------------------------------------------------------

    def look_soon(self, key: str) -> None:
        """Have a look at what waits for this key, and at what could be done for it. Any thread."""
        if key in self._due:
            return
        self._due.add(key)
        if running_loop() is self.loop:
            self.loop.call_soon(self._look_now, key)
            return
        try:
            self.loop.call_soon_threadsafe(self._look_now, key)
        except RuntimeError:  # the loop was closed: there is nobody left to look for
            self._due.discard(key)

    def _look_now(self, key: str) -> None:
        self._due.discard(key)
        self.look(key)

    def _timed(self, key: str) -> None:
        del self._timers[key]
        oldest = self._oldest(key)
        if oldest is not None:
            starving = self.local.idle.line.starving_ticket(oldest)
            if starving is not None:
                self.local.member.tell(Starves(starving))
        self.look(key)

    def look(self, key: str) -> None:
        """Hand out what lies here, ask the books where that is due, and see when to look again."""
        local = self.local
        while (oldest := self._oldest(key)) is not None and local.idle.shelves.get(key):
            entry = local.idle.shelves.take(key)
            if entry is not None and not give_to_oldest(
                local.idle.line.waiters.get(key, deque()), entry
            ):
                entry.local.idle.put_back(entry)
                break
        while (waiter := self._to_ask(key)) is not None:
            local.member.asker.add(lambda waiter=waiter: self._ask(waiter))  # type: ignore[misc]
        if oldest is not None:
            self._look_again(key, oldest)

    def begins_to_wait(self, key: str) -> None:
        """A task has begun to wait for this key: look, unless that would do nothing, as where many wait."""
        if key in self._timers and not self.local.idle.shelves.get(key):
            demand = self.local.idle.line.demands.get(key)
            if demand is not None and self._asks_enough(demand):
                return
        self.look(key)

    def _oldest(self, key: str) -> TaskWaiter | None:
        """The first of this loop's tasks that still waits for a key."""
        with self.local.inventory.lock:
            for waiter in self.local.idle.line.waiters.get(key, ()):
                if waiter.is_open and isinstance(waiter, TaskWaiter) and waiter._desk is self:
                    return waiter
        return None

    def _to_ask(self, key: str) -> TaskWaiter | None:
        """A waiter with whose ticket the books are to be asked now, if any; the ticket counts as sent."""
        line = self.local.idle.line
        with self.local.inventory.lock:
            demand = line.demand_for(key)
            if self._asks_enough(demand):
                return None
            waiter = self._without_ticket(demand)
            return waiter if waiter and line.must_ask(waiter, waiter.timeout) else None

    def _without_ticket(self, demand: Demand) -> TaskWaiter | None:
        """The first of this loop's tasks that could ask. Caller holds the inventory's lock."""
        # More than there are tickets need not be looked at: one of them has none.
        for waiter in islice(demand.waiting, len(demand.waiting)):
            if (
                isinstance(waiter, TaskWaiter)
                and waiter._desk is self
                and waiter.is_open
                and not waiter.insists
                and waiter.ticket not in demand.tickets
            ):
                return waiter
        return None

    def _asks_enough(self, demand: Demand) -> bool:
        """Whether as much is asked for as there can be. Where all who wait are counted, all ask."""
        if self.local.idle.line.asks_at_once:
            return False
        most = self.local.options.max_size or MOST_TICKETS
        return len(demand.tickets) + len(demand.opening) >= most

    def _look_again(self, key: str, oldest: TaskWaiter) -> None:
        """Look again in time, unless that is planned already."""
        line, now = self.local.idle.line, monotonic()
        planned = self._timers.get(key)
        with self.local.inventory.lock:
            demand = line.demand_for(key)
            enough = self._asks_enough(demand)
            if enough and planned is not None:
                return
            asking = None if enough else self._without_ticket(demand)
            durations = self.local.durations
            starves_at = demand.starves_at(oldest.since, durations.opening_s, durations.use_s)
            if asking is not None:
                at = min(starves_at, line.look_at(asking, asking.timeout))
            else:  # the time to ask may have come, and there is nothing to ask for, or nothing to ask with
                at = min(starves_at, demand.late_at(now))
                if not enough:
                    line.have_another_ask(demand, now)  # a task of another loop
            oldest.looks_at = at
        if planned is not None:
            if planned[0] <= at:
                return
            planned[1].cancel()
            del self._timers[key]
        if at < math.inf:
            handle = self.loop.call_later(max(0.0, at - now), self._timed, key)
            self._timers[key] = (at, handle)

    # --- asking: in the asker's thread ----------------------------------------------------------------------

    def _ask(self, waiter: TaskWaiter) -> None:
        local, ticket = self.local, waiter.ticket
        member, key, left = local.member, waiter.key, waiter.left()
        until = None if left is None else monotonic() + max(left, ASK_GRACE_S)
        try:
            if not waiter.is_open:  # served, or gone, before it was asked for
                local.idle.line.ticket_ended(ticket, None)
                return
            answer = member.call(Checkout(local.name, key, ticket, left, waiter.lane), until)
        except SessionLost as error:
            if left == 0:
                local.idle.line.ticket_ended(ticket, Refuse(ticket, "timeout", str(error)))
            else:
                threading.Event().wait(SESSION_PAUSE_S)  # the server may be saying farewell
                local.idle.line.ticket_ended(ticket, None)
        except (TimeoutError, NotReadyYet) as error:
            member.tell(Abandoned(ticket))
            self._unanswered(waiter, ticket, str(error))
        except BaseException as error:  # noqa: BLE001  # the task raises it
            member.tell(Abandoned(ticket))
            if not local.idle.line.ticket_ended(ticket, Failure(error)):
                waiter.give(Failure(error))
        else:
            self._answered(waiter, answer)

    def _unanswered(self, waiter: TaskWaiter, ticket: Ticket, text: str) -> None:
        """The books do not answer now. A task that has time left goes on waiting: a neighbour may give it something."""
        waiter.unanswered = text
        if waiter.left() == 0:
            self.local.idle.line.ticket_ended(ticket, Refuse(ticket, "timeout", text))
            return
        threading.Event().wait(ASK_AGAIN_S)
        self.local.idle.line.ticket_ended(ticket, None)  # and another ticket is asked for

    def _answered(self, waiter: TaskWaiter, answer: Any) -> None:
        local = self.local
        if isinstance(answer, Queued):
            local.idle.line.elsewhere = answer.why
            local.member.audit.want_again()
        elif isinstance(answer, Grant):
            open_beside(local, answer, waiter)
        else:
            local.idle.line.ticket_ended(waiter.ticket, answer)

    def ask_at_once(self, waiter: TaskWaiter) -> None:
        """Ask for a checkout that waits for nobody. Called in the loop; answered by the asker's thread."""
        self.local.member.asker.add(lambda: self._ask_at_once(waiter))

    def _ask_at_once(self, waiter: TaskWaiter) -> None:
        local, member, ticket = self.local, self.local.member, waiter.ticket
        if not waiter.is_open:
            return
        try:
            if member.link.is_stopped():
                waiter.give(Refuse(ticket, "timeout", "the server is stopped"))
                return
            event = Checkout(local.name, waiter.key, ticket, 0.0, waiter.lane)
            answer = member.call(event, monotonic() + ASK_GRACE_S)
        except SessionLost:
            waiter.give(Refuse(ticket, "timeout", "the server was leaving"))
        except TimeoutError as error:
            member.tell(Abandoned(ticket))
            waiter.give(Refuse(ticket, "timeout", str(error)))
        except BaseException as error:  # noqa: BLE001  # the task raises it
            member.tell(Abandoned(ticket))
            waiter.give(Failure(error))
        else:
            if isinstance(answer, Grant):
                open_beside(local, answer, waiter)
            else:
                waiter.give(answer)

    # --- waiters whose tasks were never finished ------------------------------------------------------------

    def stop_waiting(self, waiter: TaskWaiter, answer: Any) -> None:
        """Nobody gives to this waiter any more, and what came before is kept. answer: what its task has got."""
        served = isinstance(answer, PoolEntry)
        if not served:  # else it was given that, and nothing more
            given = waiter.withdraw()
            if given is not None and given is not answer:
                self.hand_on(given)
        line = self.local.idle.line
        line.dequeue(waiter, served=served)
        if not line.waiters and running_loop() is self.loop:
            self.deadlines.tidy_up()

    def desert(self, waiter: TaskWaiter, answer: Any) -> None:
        """The same, from a finalizer: only note it."""
        self.deserted.append((waiter, answer))
        self.local.member.wake()

    def hand_on(self, given: Any) -> None:
        """Something was given in the instant in which a task stopped waiting: it goes to the next."""
        if isinstance(given, PoolEntry):
            given.local.idle.put_back(given)
        elif isinstance(given, Failure):
            log.warning("%s; the checkout that wanted it had gone", given.error)

    def look_after_deserted(self) -> None:
        """Called by the background thread."""
        while self.deserted:
            self.stop_waiting(*self.deserted.popleft())
        if self.loop.is_closed():
            for waiter in self.local.idle.line.all_waiters():
                if isinstance(waiter, TaskWaiter) and waiter._desk is self:
                    self.stop_waiting(waiter, None)
