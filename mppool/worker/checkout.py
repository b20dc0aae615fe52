"""A checkout that found nothing on the shelf: wait, and ask the books."""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from mppool.core.decisions import NOBODY, Grant, Queued, Refuse
from mppool.core.events import Abandoned, Checkout, Starves
from mppool.errors import (
    CheckoutTimeout,
    ConfigurationMismatch,
    PoolClosed,
    PoolError,
    ServerUnavailable,
    TooManyWaiting,
)
from mppool.errors import (
    OpenFailed as OpenFailedError,
)
from mppool.link.connection import ASK_GRACE_S, ASK_PATIENCE_S, SESSION_PAUSE_S, SessionLost
from mppool.logs import Log
from mppool.process.waiter import LocalWaiter, Retry
from mppool.rendezvous.readiness import NotReadyYet
from mppool.worker.callers import caller_name
from mppool.worker.hints import FRESH_S, own_leases, warn_of_event_loop
from mppool.worker.inside import inside
from mppool.worker.inventory import PoolEntry
from mppool.worker.lanes import lend_in_lane
from mppool.worker.local_pool import LocalPool
from mppool.worker.opening import Failure, open_beside, open_resource

if TYPE_CHECKING:
    from mppool.ids import Ticket
    from mppool.worker.context import Context
    from mppool.worker.inventory import Inventory
    from mppool.worker.principal import Principal

log = Log("mppool")


LONGEST_ASK_S = 5.0
"""A thread that can be served by nobody but the books waits so long for their answer, and asks again."""

START_PATIENCE_S = 1.0
"""How much longer an answer may take where a server has to be found, or started, first."""

REFUSAL_GRACE_S = 0.005
"""How much longer than its timeout a checkout waits to be told why there was nothing."""


def check_out_at_once(local: LocalPool) -> PoolEntry | str:
    """A checkout with a timeout of 0, for the pool's own identity, that has found nothing on the shelf.

    Nearly always there is nothing to be had, and a thread that asks again and again pays for every function that is
    passed (decision 11). So this one knows only that case; all else is left to ColdCheckout.

    A text: of the CheckoutTimeout that the caller raises. To raise it here would pass two functions more.
    """
    member, answer = local.member, None
    if not (local.closed_here or local.closed_everywhere):
        ticket = member.next_ticket()
        try:
            answer = member.link.ask_at_once(Checkout(local.name, local.default_key, ticket, 0.0))
        except (SessionLost, TimeoutError) as error:
            answer = not_answered(member, ticket, error)
        except BaseException:
            member.tell(Abandoned(ticket))
            raise
        if type(answer) is Refuse and answer.reason == "timeout":
            until, said, text = local.refusals.said
            if said != answer.text or monotonic() >= until:
                return refused_at_once(local, answer.text)
            local.refusals.uncounted.append(None)
            return text
    return ColdCheckout(local, local.default_key, 0.0).run(answer)


def not_answered(context: Context, ticket: Ticket, error: SessionLost | TimeoutError) -> Refuse:
    """What a checkout gets that has no time left to ask again."""
    if isinstance(error, SessionLost):
        return Refuse(ticket, "timeout", "the server was leaving")
    context.tell(Abandoned(ticket))
    return Refuse(ticket, "timeout", str(error))


def timed_out(local: LocalPool, timeout: float | None, text: str) -> CheckoutTimeout:
    """The error of a checkout that got nothing in its time; it is counted."""
    local.count("timeouts")
    return CheckoutTimeout(
        f"pool {local.name!r}: no resource became available within {timeout:g} s{': ' + text if text else ''}"
        f"{own_leases(local)}{local.holders.told(monotonic()) if timeout else ''}; release leases sooner, raise max_size or wait longer"
    )


def refused_at_once(local: LocalPool, why: str) -> str:
    """What one is told that waits for nobody. The books say the same for a moment, and so does this process."""
    local.count("timeouts", local.refusals.take())
    text = str(timed_out(local, 0.0, why))
    local.refusals.said = (monotonic() + FRESH_S, why, text)
    return text


def refusal(local: LocalPool, timeout: float | None, refuse: Refuse) -> PoolError:
    """The error of a checkout that the books have refused."""
    if refuse.reason == "timeout":
        return timed_out(local, timeout, refuse.text)
    if refuse.reason == "too_many_waiting":
        return TooManyWaiting(f"pool {local.name!r}: {refuse.text}; refused at once")
    if refuse.reason == "open_failed":
        return OpenFailedError(
            f"pool {local.name!r}: opening fails at present, so it is not tried again at once; the "
            f"last error was: {refuse.text}"
        )
    if refuse.reason == "closed":
        return PoolClosed(f"{refuse.text}; it hands out nothing any more")
    if refuse.reason == "journal":
        return ServerUnavailable(refuse.text)
    if refuse.reason == "mismatch":
        return ConfigurationMismatch(f"pool {local.name!r}: {refuse.text}")
    return PoolError(f"pool {local.name!r}: {refuse.text}")


class ColdCheckout:
    """One checkout that goes beyond the shelf. Everything it holds is given back however it ends."""

    def __init__(
        self,
        local: LocalPool,
        key: str,
        timeout: float | None,
        bearer: Principal | None = None,
        lane: str | None = None,
    ) -> None:
        """lane: None in a pool without lanes."""
        self._local = local
        self._lane = lane
        self._bearer = bearer
        self._member = local.member
        self._key = key
        self._timeout = timeout
        self._started = monotonic()
        self._deadline = None if timeout is None else self._started + timeout
        # Asking is not waiting: the books may take a moment to answer, also with a timeout of 0.
        self._ask_until = None if timeout is None else self._started + max(timeout, ASK_GRACE_S)
        if bearer is not None:
            bearer.deadline = self._deadline
        self._last_error: OpenFailedError | None = None
        # What came of asking, where the books have not answered in time; "" while they do.
        self._unanswered = ""
        self._waiter: LocalWaiter | None = None
        self._inventory = local.inventory

    def run(self, answer: Any = None) -> PoolEntry:
        """A resource that is ready for the caller.

        answer: what the books have said already, to a checkout that waits for nobody.

        Raises CheckoutTimeout, TooManyWaiting, OpenFailed, PoolClosed or ServerUnavailable.
        """
        try:
            return self._run(answer)
        except BaseException:
            self._stop_waiting(None)  # again: an interrupt may have struck within the first time
            raise

    def _run(self, answer: Any) -> PoolEntry:
        while True:
            entry = self._from_shelf() if answer is None else None
            if entry is None:
                entry = self._at_once(answer) if self._timeout == 0 else self._by_waiting()
            answer = None
            if entry is not None:
                self._local.durations.waited(monotonic() - self._started)
                entry.lane = self._lane
                return entry
            if self._timeout and self._left() == 0:  # what came was unusable, again and again
                self._refused(
                    Refuse(NOBODY, "timeout", self._local.idle.line.why_nothing(self._key))
                )

    def _from_shelf(self) -> PoolEntry | None:
        local = self._local
        while (entry := self._take()) is not None:
            if local.prepare(entry, monotonic(), self._bearer, self._deadline):
                return entry
            if self._timeout and self._left() == 0:
                return None
        return None

    def _take(self) -> PoolEntry | None:
        """A resource from the shelf, or None."""
        entry = self._local.idle.shelves.take(self._key)
        if entry is not None and self._lane is not None:
            lend_in_lane(self._local, entry, self._lane)
        return entry

    def _at_once(self, answer: Any) -> PoolEntry | None:
        """Ask without waiting for anybody, where there is no answer yet; None: look again."""
        if answer is None:
            if self._local.closed:
                self._raise_closed()
            ticket = self._member.next_ticket()
            try:
                answer = self._call(ticket)
            except BaseException:
                self._member.tell(Abandoned(ticket))
                raise
        if isinstance(answer, Grant):
            return self._by_waiting(answer)
        return self._use(answer, self._local.inventory)

    def _raise_closed(self) -> NoReturn:
        raise PoolClosed(f"pool {self._local.name!r} is closed; it hands out nothing any more")

    def _by_waiting(self, granted: Grant | None = None) -> PoolEntry | None:
        """One round of waiting; None: look again.

        granted: what the books have granted already, to a checkout that waits for nothing else.
        """
        local = self._local
        if local.closed_here or local.closed_everywhere:
            if granted is not None:  # closed since it asked
                self._hand_on(granted, local.inventory)
            self._raise_closed()
        self._inventory = local.inventory
        self._waiter = waiter = LocalWaiter(
            self._member.next_ticket() if granted is None else granted.ticket,
            self._key,
            self._bearer,
            insists=granted is not None,
            # A hook that uses the pool itself has what it needs opened where it runs.
            opens_here=local.recipe.open_in_caller or inside.a_hook,
            lane=self._lane or "",
        )
        waiter.deadline = self._deadline
        if local.notes_callers:
            waiter.who = caller_name()
        answer: Any = None
        try:
            local.idle.line.enqueue(waiter)
            self._member.housekeeper.expects(local.holders.expected_by(waiter))
            if granted is not None:
                waiter.asked = True
                answer = self._take_up(granted, waiter)
            answer = answer or self._wait(waiter)
        except BaseException:
            self._give_up(waiter)  # its ticket may have been noted, and never sent
            raise
        finally:
            self._stop_waiting(answer)
        return self._use(answer, self._inventory)

    def _stop_waiting(self, answer: Any) -> None:
        """Nobody gives to our waiter any more, and what came before is kept. Any number of times."""
        waiter = self._waiter
        if waiter is None:
            return
        given = waiter.withdraw()
        if given is not None and given is not answer:
            self._hand_on(given, self._inventory)
        self._local.idle.line.dequeue(waiter, served=isinstance(answer, PoolEntry))
        self._waiter = None

    def _wait(self, waiter: LocalWaiter) -> Any:
        """PoolEntry, Grant, Refuse, Retry or Failure: whatever comes first."""
        local, left_s = self._local, self._left()
        while True:
            # Enqueued first, looked again, and after each call: no release is missed.
            if (entry := self._take()) is not None:
                return entry
            if self._can_ask() and local.idle.line.must_ask(waiter, left_s):
                answer = self._ask(waiter) or self._take()
                if answer is not None:
                    return answer
            until = self._wait_until(waiter)
            # Who asks no more has nothing to look for: else it would look again and again, without a pause.
            look_at = local.idle.line.look_at(waiter, left_s) if self._can_ask() else math.inf
            at = look_at if until is None else min(until, look_at)
            if waiter.opening is None and not local.idle.line.opens_for(self._key):
                warn_of_event_loop(local)
            answer = waiter.wait(None if at == math.inf else at)
            if answer is not None:
                return answer
            if until is not None and monotonic() >= until:
                return Refuse(waiter.ticket, "timeout", self._why_nothing())
            starving = local.idle.line.starving_ticket(waiter)
            if starving is not None:
                self._member.tell(Starves(starving))

    def _wait_until(self, waiter: LocalWaiter) -> float | None:
        """When the waiting ends. With a timeout of 0 only a granted opening is waited for: it is not waiting."""
        if self._deadline is None or self._timeout == 0:
            return None
        # The books refuse in the same instant, and can say why.
        return self._deadline + (REFUSAL_GRACE_S if waiter.asked else 0.0)

    def _ask(self, waiter: LocalWaiter) -> Any:
        """Ask the books. None: what they grant comes later, or is being opened; or they do not answer now."""
        waiter.calling = True
        try:
            answer = self._call_patiently(waiter.ticket)
        finally:
            waiter.calling = False
        if answer is None:
            self._give_up(waiter)
            return None
        if isinstance(answer, Queued):
            self._local.idle.line.elsewhere = answer.why
            self._member.audit.want_again()
            return None
        if isinstance(answer, Grant):
            return self._take_up(answer, waiter)
        self._local.idle.line.ticket_ended(waiter.ticket, None)
        if answer is not Retry:
            return answer
        # A pause, because the server may be saying farewell; a neighbour's release ends it.
        left = self._left()
        pause = SESSION_PAUSE_S if left is None else min(SESSION_PAUSE_S, left)
        return waiter.wait(monotonic() + pause) or Retry

    def _take_up(self, grant: Grant, waiter: LocalWaiter) -> Grant | None:
        """Have a grant opened beside us (None), or return it, to be opened in this thread."""
        if waiter.opens_here:
            self._local.idle.line.opens_for_itself(grant)
            return grant
        open_beside(self._local, grant, waiter)
        return None

    def _call(self, ticket: Ticket) -> Any:
        """What the books answer, at once: Grant, Queued or Refuse; Retry if the session was lost."""
        try:
            return self._answer_to(ticket, self._ask_until)
        except TimeoutError as error:
            why = TimeoutError(f"{error}; {self._local.idle.line.why_nothing(self._key)}")
            return not_answered(self._member, ticket, why)

    def _call_patiently(self, ticket: Ticket) -> Any:
        """The same; None: the books have not answered in time, and there may be something on the shelf by now.

        A server that is stopped would have all threads wait for it, and neighbours release in vain.
        """
        began, inventory, line = monotonic(), self._inventory, self._local.idle.line
        patience = ASK_PATIENCE_S if line.can_go_on(self._key) else LONGEST_ASK_S
        if inventory.session is None:
            patience += START_PATIENCE_S
        until = began + patience
        if self._ask_until is not None:
            until = min(until, self._ask_until)
        silence = self._member.silence
        try:
            answer = self._answer_to(ticket, until)
        except (TimeoutError, NotReadyYet) as error:
            if isinstance(error, NotReadyYet) and self._left() == 0:
                raise
            self._unanswered = str(error)
            silence.begins(began, monotonic(), stopped=self._member.link.is_stopped())
            return None
        self._unanswered = ""
        if silence.until > 0:
            silence.ends()
        return answer

    def _answer_to(self, ticket: Ticket, until: float | None) -> Any:
        """What the books answer to a checkout. Raises TimeoutError."""
        event = Checkout(self._local.name, self._key, ticket, self._left(), self._lane or "")
        try:
            return self._member.call(event, until)
        except SessionLost as error:
            return not_answered(self._member, ticket, error) if self._left() == 0 else Retry

    def _can_ask(self) -> bool:
        """Whether there is time to ask once more, where the books have not answered before."""
        if not self._unanswered:
            return True
        left = self._left()
        return left is None or left >= ASK_PATIENCE_S

    def _why_nothing(self) -> str:
        text = self._local.idle.line.why_nothing(self._key)
        return f"{self._unanswered}; {text}" if self._unanswered else text

    def _give_up(self, waiter: LocalWaiter) -> None:
        """Whether the books have our ticket in their queue is not known."""
        self._local.idle.line.ticket_ended(waiter.ticket, None)
        self._member.tell(Abandoned(waiter.ticket))

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - monotonic())

    def _use(self, answer: Any, inventory: Inventory) -> PoolEntry | None:
        local = self._local
        if isinstance(answer, PoolEntry):
            if answer.uses or answer.opened_at < self._started:
                return (
                    answer
                    if local.prepare(answer, monotonic(), self._bearer, self._deadline)
                    else None
                )
            local.lend(answer, monotonic())  # opened while we waited: there is nothing to look at
            return answer
        if isinstance(answer, Grant):
            return self._open_here(answer, inventory)
        if isinstance(answer, Failure):
            self._failed(answer.error)
        if isinstance(answer, Refuse):
            self._refused(answer)
        return None

    def _open_here(self, grant: Grant, inventory: Inventory) -> PoolEntry | None:
        """Open in this thread, to which the resource belongs."""
        entry = inventory.table.get(grant.number)
        if entry is None:
            return None  # the session was lost, and the grant with it
        try:
            open_resource(entry, grant, self._left(), self._bearer)
        except OpenFailedError as error:
            self._failed(error)
            return None
        self._local.lend(entry, monotonic())
        return entry

    def _failed(self, error: BaseException) -> None:
        """An opening on our behalf failed: that ends the checkout, or it goes on waiting."""
        retries = isinstance(error, OpenFailedError) and not self._local.options.fail_fast
        if not retries or self._timeout == 0:
            raise error
        assert isinstance(error, OpenFailedError)
        self._last_error = error

    def _hand_on(self, given: Any, inventory: Inventory) -> None:
        """Something was given in the instant in which we stopped waiting: it goes to the next."""
        if isinstance(given, PoolEntry):
            given.local.idle.put_back(given)
        elif isinstance(given, Grant):
            self._member.decline(given, inventory)
            self._local.idle.line.poke(given.key)
        elif isinstance(given, Failure):
            log.warning("%s; the checkout that wanted it had gone", given.error)

    def _refused(self, refuse: Refuse) -> NoReturn:
        raise refusal(self._local, self._timeout, refuse) from self._last_error
