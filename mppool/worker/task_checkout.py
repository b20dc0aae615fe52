"""A checkout of a task that found nothing on the shelf: it waits for a future, and its desk asks the books."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from mppool.core.decisions import NOBODY, Refuse
from mppool.errors import OpenFailed as OpenFailedError
from mppool.errors import PoolClosed
from mppool.link.connection import ASK_GRACE_S
from mppool.worker.callers import caller_name
from mppool.worker.checkout import REFUSAL_GRACE_S, refusal
from mppool.worker.inventory import PoolEntry
from mppool.worker.lanes import lend_in_lane
from mppool.worker.opening import Failure
from mppool.worker.tasks import TaskWaiter

if TYPE_CHECKING:
    from mppool.worker.principal import Principal
    from mppool.worker.tasks import Desk


class Hooks(Protocol):
    """How a resource is made ready for a task. Both own it: what they raise at, or refuse, they have closed."""

    async def prepare(
        self, entry: PoolEntry, principal: Principal | None, deadline: float | None
    ) -> bool:
        """A resource from the shelf is made ready; False: it had to be closed instead."""

    async def lend(self, entry: PoolEntry) -> None:
        """A resource that was opened a moment ago is made ready."""


class TaskCheckout:
    """One checkout that goes beyond the shelf. Whatever it holds at an await is given back if that is cancelled."""

    def __init__(
        self,
        desk: Desk,
        hooks: Hooks,
        key: str,
        timeout: float | None,
        principal: Principal | None = None,
        lane: str | None = None,
    ) -> None:
        """lane: None in a pool without lanes."""
        self._lane = lane
        self._desk = desk
        self._local = desk.local
        self._hooks = hooks
        self._key = key
        self._timeout = timeout
        self._bearer = principal
        self._started = monotonic()
        self._deadline = None if timeout is None else self._started + timeout
        if principal is not None:
            principal.deadline = self._deadline
        self._last_error: OpenFailedError | None = None

    async def run(self) -> PoolEntry:
        """A resource that is ready for the task.

        Raises CheckoutTimeout, TooManyWaiting, OpenFailed, PoolClosed or ServerUnavailable.
        """
        while True:
            entry = None
            if not self._local.idle.line.waiters.get(self._key):
                entry = await self._from_shelf()
            entry = entry or await self._by_waiting()
            if entry is not None:
                self._local.durations.waited(monotonic() - self._started)
                if self._lane is not None:
                    lend_in_lane(self._local, entry, self._lane)
                return entry
            if self._timeout and self._left() == 0:  # what came was unusable, again and again
                self._refused(
                    Refuse(NOBODY, "timeout", self._local.idle.line.why_nothing(self._key))
                )

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - monotonic())

    async def _from_shelf(self) -> PoolEntry | None:
        """Where nobody waits; else it is the turn of those who have come earlier."""
        local = self._local
        while not local.idle.line.waiters.get(self._key):
            entry = local.idle.shelves.take(self._key)
            if entry is None:
                return None
            if await self._hooks.prepare(entry, self._bearer, self._deadline):
                return entry
            if self._timeout and self._left() == 0:
                return None
        return None

    async def _by_waiting(self) -> PoolEntry | None:
        """One round of waiting; None: look again."""
        local, desk, at_once = self._local, self._desk, self._timeout == 0
        if local.closed_here or local.closed_everywhere:
            raise PoolClosed(f"pool {local.name!r} is closed; it hands out nothing any more")
        waiter = TaskWaiter(
            desk,
            self._key,
            self._deadline,
            self._timeout,
            self._bearer,
            insists=at_once,
            lane=self._lane or "",
        )
        if local.notes_callers:
            waiter.who = caller_name()
        answer: Any = None
        try:
            local.idle.line.enqueue(waiter)
            local.member.housekeeper.expects(local.holders.expected_by(waiter))
            if at_once:
                answer = await self._at_once(waiter)
            else:
                desk.begins_to_wait(self._key)  # enqueued first: no release is missed
                if waiter.is_open:
                    await waiter.sleep(self._deadline)
                answer = waiter.woken() or await self._too_late(waiter)
        except GeneratorExit:  # perhaps by the garbage collector, in which no lock may be taken
            desk.desert(waiter, None)
            raise
        except BaseException:
            desk.stop_waiting(waiter, None)
            raise
        desk.stop_waiting(waiter, answer)
        if isinstance(answer, PoolEntry):
            answer.handed_at = 0.0  # its next release goes to the next task too
            if self._lend_at_once(answer):
                return answer
        return await self._use(answer)

    async def _too_late(self, waiter: TaskWaiter) -> Any:
        """The time has passed. The books refuse in the same instant, and can say why; or something comes after all."""
        answer = None
        if waiter.asked and self._deadline is not None:
            answer = await waiter.answer(self._deadline + REFUSAL_GRACE_S)
        if answer is None:
            why = self._local.idle.line.why_nothing(self._key)
            text = f"{waiter.unanswered}; {why}" if waiter.unanswered else why
            return Refuse(waiter.ticket, "timeout", text)
        return answer

    async def _at_once(self, waiter: TaskWaiter) -> Any:
        """Wait for nobody else; opening what the books grant is no waiting."""
        self._desk.ask_at_once(waiter)
        answer = await waiter.answer(monotonic() + ASK_GRACE_S)
        if answer is None and waiter.opening is not None:
            answer = await waiter.answer(None)
        return answer or Refuse(waiter.ticket, "timeout", "the server has not answered yet")

    def _lend_at_once(self, entry: PoolEntry) -> bool:
        """Lend it, unless it has to be looked at first; False then."""
        now = monotonic()
        if (
            self._bearer is not None
            or now >= entry.retire_at
            or now - entry.released_at >= self._local.trust_s
        ):
            return False
        entry.uses += 1
        entry.lent_at = now
        return True

    async def _use(self, answer: Any) -> PoolEntry | None:
        if isinstance(answer, PoolEntry):
            if answer.uses or answer.opened_at < self._started:
                ready = await self._hooks.prepare(answer, self._bearer, self._deadline)
                return answer if ready else None
            await self._hooks.lend(answer)  # opened while we waited: there is nothing to look at
            return answer
        if isinstance(answer, Failure):
            self._failed(answer.error)
        if isinstance(answer, Refuse):
            self._refused(answer)
        return None

    def _failed(self, error: BaseException) -> None:
        """An opening on our behalf failed: that ends the checkout, or it goes on waiting."""
        retries = isinstance(error, OpenFailedError) and not self._local.options.fail_fast
        if not retries or self._timeout == 0:
            raise error
        assert isinstance(error, OpenFailedError)
        self._last_error = error

    def _refused(self, refuse: Refuse) -> NoReturn:
        raise refusal(self._local, self._timeout, refuse) from self._last_error
