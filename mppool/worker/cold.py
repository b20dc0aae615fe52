"""A checkout that found nothing on the shelf: ask the books, wait, open."""

from __future__ import annotations

import math
import random
import traceback
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NoReturn

from mppool.core.decisions import NOBODY, Grant, Queued, Refuse
from mppool.core.events import Abandoned, Checkout, Opened, Starves
from mppool.errors import (
    CheckoutTimeout,
    ForkedLease,
    PoolClosed,
    PoolError,
    ServerUnavailable,
    TooManyWaiting,
)
from mppool.errors import (
    OpenFailed as OpenFailedError,
)
from mppool.logs import Log, logged_afterwards
from mppool.recipe import Opening
from mppool.redaction import HIDDEN, forget_locals, without_secrets
from mppool.worker.audit import give_up_opening
from mppool.worker.bearer import NEAR_EXPIRY_S, repeats, secret_of
from mppool.worker.calls import SESSION_PAUSE_S, SessionLost
from mppool.worker.entry import NEVER, Entry
from mppool.worker.face import Face, identity_of
from mppool.worker.hints import own_leases, refuse_none, warn_of_event_loop
from mppool.worker.housekeeping import due_when_idle
from mppool.worker.inside import inside
from mppool.worker.shelf import shelve, take
from mppool.worker.waiter import LocalWaiter, Retry, give_to_oldest

if TYPE_CHECKING:
    from mppool.ids import Ticket
    from mppool.worker.bearer import Bearer, Token
    from mppool.worker.holdings import Holdings

log = Log("mppool")


ASK_GRACE_S = 0.25
"""How long the books may take to answer although the timeout is shorter."""

REFUSAL_GRACE_S = 0.005
"""How much longer than its timeout a checkout waits to be told why there was nothing."""

_LONGEST_TEXT = 2000
_LONGEST_READ = 8000
"""What is longer is not searched for secrets, and not told."""

LIFETIME_JITTER = 0.1
"""The part of `max_lifetime` by which a resource may die earlier."""


class Failure:
    """Answer to the waiter for whom a resource was being opened: what its hook raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class ColdCheckout:
    """One checkout that goes beyond the shelf. Everything it holds is given back however it ends."""

    def __init__(
        self, face: Face, key: str, timeout: float | None, bearer: Bearer | None = None
    ) -> None:
        self._face = face
        self._bearer = bearer
        self._member = face.member
        self._key = key
        self._timeout = timeout
        self._started = monotonic()
        self._deadline = None if timeout is None else self._started + timeout
        # Asking is not waiting: the books may take a moment to answer, also with a timeout of 0.
        self._ask_until = None if timeout is None else self._started + max(timeout, ASK_GRACE_S)
        if bearer is not None:
            bearer.deadline = self._deadline
        self._last_error: OpenFailedError | None = None
        self._waiter: LocalWaiter | None = None
        self._holdings = face.holdings

    def run(self) -> Entry:
        """A resource that is ready for the caller.

        Raises CheckoutTimeout, TooManyWaiting, OpenFailed, PoolClosed or ServerUnavailable.
        """
        try:
            return self._run()
        except BaseException:
            self._stop_waiting(None)  # again: an interrupt may have struck within the first time
            raise

    def _run(self) -> Entry:
        while True:
            entry = self._from_shelf()
            if entry is None:
                entry = self._at_once() if self._timeout == 0 else self._by_waiting()
            if entry is None:
                continue
            waited = monotonic() - self._started
            self._face.observe("wait", waited)
            return entry

    def _from_shelf(self) -> Entry | None:
        face = self._face
        while (entry := take(face, self._key)) is not None:
            if face.prepare(entry, monotonic(), self._bearer, self._deadline):
                return entry
        return None

    def _at_once(self) -> Entry | None:
        """Ask without waiting for anybody; None: look again."""
        self._check_open()
        ticket = self._member.next_ticket()
        try:
            answer = self._call(ticket)
        except BaseException:
            self._member.tell(Abandoned(ticket))
            raise
        if isinstance(answer, Grant):
            return self._by_waiting(answer)
        return self._use(answer, self._face.holdings)

    def _check_open(self) -> None:
        if self._face.closed:
            raise PoolClosed(f"pool {self._face.name!r} is closed; it hands out nothing any more")

    def _by_waiting(self, granted: Grant | None = None) -> Entry | None:
        """One round of waiting; None: look again.

        granted: what the books have granted already, to a checkout that waits for nothing else.
        """
        face = self._face
        self._check_open()
        self._holdings = face.holdings
        self._waiter = waiter = LocalWaiter(
            self._member.next_ticket() if granted is None else granted.ticket,
            self._key,
            self._bearer,
            insists=granted is not None,
            # A hook that uses the pool itself has what it needs opened where it runs.
            opens_here=face.recipe.open_in_caller or inside.opener or inside.checker,
        )
        answer: Any = None
        try:
            face.enqueue(waiter)
            if granted is not None:
                waiter.asked = True
                answer = self._take_up(granted, waiter)
            answer = answer or self._wait(waiter)
        except BaseException:
            self._give_up(waiter)  # its ticket may have been noted, and never sent
            raise
        finally:
            self._stop_waiting(answer)
        return self._use(answer, self._holdings)

    def _stop_waiting(self, answer: Any) -> None:
        """Nobody gives to our waiter any more, and what came before is kept. Any number of times."""
        waiter = self._waiter
        if waiter is None:
            return
        given = waiter.withdraw()
        if given is not None and given is not answer:
            self._hand_on(given, self._holdings)
        self._face.dequeue(waiter, served=isinstance(answer, Entry))
        self._waiter = None

    def _wait(self, waiter: LocalWaiter) -> Any:
        """Entry, Grant, Refuse, Retry or Failure: whatever comes first."""
        face, left_s = self._face, self._left()
        while True:
            # Enqueued first, looked again: no release is missed.
            if (entry := take(face, self._key)) is not None:
                return entry
            if face.must_ask(waiter, left_s) and (answer := self._ask(waiter)) is not None:
                return answer
            until = self._wait_until(waiter)
            look_at = face.look_at(waiter, left_s)
            at = look_at if until is None else min(until, look_at)
            if not face.opens_for(self._key):
                warn_of_event_loop(face)
            answer = waiter.wait(None if at == math.inf else at)
            if answer is not None:
                return answer
            if until is not None and monotonic() >= until:
                return Refuse(waiter.ticket, "timeout", face.why_nothing(self._key))
            starving = face.starving_ticket(waiter)
            if starving is not None:
                self._member.tell(Starves(starving))

    def _wait_until(self, waiter: LocalWaiter) -> float | None:
        """When the waiting ends. With a timeout of 0 only a granted opening is waited for: it is not waiting."""
        if self._deadline is None or self._timeout == 0:
            return None
        # The books refuse in the same instant, and can say why.
        return self._deadline + (REFUSAL_GRACE_S if waiter.asked else 0.0)

    def _ask(self, waiter: LocalWaiter) -> Any:
        """Ask the books. None: what they grant comes later, or is being opened."""
        if self._is_short() and self._member.link.is_stopped():
            self._face.ticket_ended(waiter.ticket, None, self._key)
            answer = waiter.wait(self._deadline)
            if answer is None and self._left() != 0:
                return Retry  # something was put back
            return answer or self._stopped(waiter.ticket)
        answer = self._call(waiter.ticket)
        if isinstance(answer, Queued):
            self._member.audit.want_again()
            return None
        if isinstance(answer, Grant):
            return self._take_up(answer, waiter)
        self._face.ticket_ended(waiter.ticket, None, self._key)
        if answer is not Retry:
            return answer
        # A pause, for the server may be saying farewell; a neighbour's release ends it.
        left = self._left()
        pause = SESSION_PAUSE_S if left is None else min(SESSION_PAUSE_S, left)
        return waiter.wait(monotonic() + pause) or Retry

    def _take_up(self, grant: Grant, waiter: LocalWaiter) -> Grant | None:
        """Have a grant opened beside us (None), or return it, to be opened in this thread."""
        if waiter.opens_here:
            return grant
        open_beside(self._face, grant, waiter)
        return None

    def _call(self, ticket: Ticket) -> Any:
        """What the books answer, at once: Grant, Queued or Refuse; Retry if the session was lost."""
        if self._timeout == 0 and self._member.link.is_stopped():
            return self._stopped(ticket)
        event = Checkout(self._face.name, self._key, ticket, self._left())
        try:
            return self._member.call(event, self._ask_until)
        except SessionLost:
            return (
                Refuse(ticket, "timeout", "the server was leaving") if self._left() == 0 else Retry
            )
        except TimeoutError:
            self._member.tell(Abandoned(ticket))
            return Refuse(ticket, "timeout", "the server did not answer in time")

    def _give_up(self, waiter: LocalWaiter) -> None:
        """Whether the books have our ticket in their queue is not known."""
        self._face.ticket_ended(waiter.ticket, None, self._key)
        self._member.tell(Abandoned(waiter.ticket))

    def _stopped(self, ticket: Ticket) -> Refuse:
        return Refuse(ticket, "timeout", "the server is stopped")

    def _is_short(self) -> bool:
        """Whether the timeout is shorter than the time that the books may take to answer."""
        return self._timeout is not None and self._timeout < ASK_GRACE_S

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - monotonic())

    def _use(self, answer: Any, holdings: Holdings) -> Entry | None:
        face = self._face
        if isinstance(answer, Entry):
            if answer.uses or answer.opened_at < self._started:
                return (
                    answer
                    if face.prepare(answer, monotonic(), self._bearer, self._deadline)
                    else None
                )
            face.lend(answer, monotonic())  # opened while we waited: there is nothing to look at
            return answer
        if isinstance(answer, Grant):
            return self._open_here(answer, holdings)
        if isinstance(answer, Failure):
            self._failed(answer.error)
        if isinstance(answer, Refuse):
            self._refused(answer)
        return None

    def _open_here(self, grant: Grant, holdings: Holdings) -> Entry | None:
        """Open in this thread, to which the resource belongs."""
        entry = holdings.table.get(grant.number)
        if entry is None:
            return None  # the session was lost, and the grant with it
        try:
            open_resource(entry, grant, self._left(), self._bearer)
        except OpenFailedError as error:
            self._failed(error)
            return None
        self._face.lend(entry, monotonic())
        return entry

    def _failed(self, error: BaseException) -> None:
        """An opening on our behalf failed: that ends the checkout, or it goes on waiting."""
        retries = isinstance(error, OpenFailedError) and not self._face.options.fail_fast
        if not retries or self._left() == 0:
            raise error
        assert isinstance(error, OpenFailedError)
        self._last_error = error

    def _hand_on(self, given: Any, holdings: Holdings) -> None:
        """Something was given in the instant in which we stopped waiting: it goes to the next."""
        if isinstance(given, Entry):
            shelve(given)
        elif isinstance(given, Grant):
            self._member.decline(given, holdings)
            self._face.poke(given.key)
        elif isinstance(given, Failure):
            log.warning("%s; the checkout that wanted it had gone", given.error)

    def _refused(self, refuse: Refuse) -> NoReturn:
        face = self._face
        if refuse.reason == "timeout":
            face.count("timeouts")
            raise CheckoutTimeout(
                f"pool {face.name!r}: nothing could be had within {self._timeout:g} s"
                f"{': ' + refuse.text if refuse.text else ''}{own_leases(face)}; release leases sooner, raise "
                "max_size or wait longer"
            ) from self._last_error
        if refuse.reason == "too_many_waiting":
            raise TooManyWaiting(f"pool {face.name!r}: {refuse.text}; refused at once")
        if refuse.reason == "open_failed":
            raise OpenFailedError(
                f"pool {face.name!r}: opening fails at present, so it is not tried again at once; the "
                f"last error was: {refuse.text}"
            )
        if refuse.reason == "closed":
            raise PoolClosed(f"{refuse.text}; it hands out nothing any more")
        if refuse.reason == "journal":
            raise ServerUnavailable(refuse.text)
        raise PoolError(f"pool {face.name!r}: {refuse.text}")


@logged_afterwards
def open_resource(
    entry: Entry, grant: Grant, left: float | None, bearer: Bearer | None = None
) -> None:
    """Use a fresh grant: open and configure the resource. Raises OpenFailed, with its cause.

    left: seconds of the checkout's timeout, for waiting; None: no end. The hooks may take their own time where
        there are none left.
    bearer: whose token the recipe gets; None where no credential is involved.
    """
    face, member = entry.face, entry.face.member
    started = monotonic()
    token: Token | None = None
    try:
        token = None if bearer is None else bearer.token(left)
        opening = Opening(grant.opened_before, identity_of(entry.key), token, left or None)
        # In one call of C: no interrupt can strike between the hook's return and the storing, which would
        # leave an open resource to which nothing refers.
        entry.opened.extend(map(face.recipe.open, (opening,)))
        if entry.holdings.inherited:
            raise ForkedLease(
                f"pool {face.name!r}: this process was forked inside the open hook; the resource belongs "
                "to its parent; check out again"
            )
        if not entry.opened:
            raise RuntimeError("the open hook raised StopIteration")
        refuse_none(face.name, entry.opened)
        entry.resource = entry.opened[0]
        _configure(face, entry)
    except Exception as error:
        if bearer is not None and token is not None and face.recipe.refuses_login(error):
            bearer.refused(token)
        # No variable holds the secret: this frame is part of the traceback, and some reporters show all of it.
        text = _text_of(error, secret_of(token))
        is_told = not repeats(error, secret_of(token))
        forget_locals(error)
        give_up_opening(entry, text, counted=True)
        if isinstance(error, OpenFailedError) or entry.holdings.inherited:
            raise
        failed = OpenFailedError(f"pool {face.name!r}: opening a resource failed: {text}")
        raise failed from (error if is_told else None)
    except BaseException as error:
        # What the hook had half opened lives as long as its frames: they end before the slot is given back.
        traceback.clear_frames(error.__traceback__)
        # Where nobody waits nobody was interrupted: the hook itself wants to end the process.
        give_up_opening(entry, type(error).__name__, counted=grant.ticket == NOBODY)
        raise
    seconds = monotonic() - started
    face.observe("open", seconds)
    if bearer is not None and token is not None:
        bearer.note(entry, token)
    with entry.holdings.lock:
        entry.state = "open"
        entry.grant = None
        entry.opened_at = entry.released_at = entry.checked_at = started + seconds
        lifetime = face.options.max_lifetime
        if lifetime is not None and entry.retire_at == NEVER:
            # Each draws its own instant, so that a fleet opened together does not die together.
            entry.retire_at = entry.opened_at + lifetime * (1 - LIFETIME_JITTER * random.random())
            entry.retire_reason = "expired_lifetime"
        if token is None and isinstance(opening.expires_on, (int, float)):
            _ends_by(entry, opening.expires_on)
        entry.holdings.outbox.append(Opened(entry.number, seconds))
        face.demand_for(entry.key).opened(entry.number)
        face.opening_time.measured(seconds)
        entry.opened = []
    member.flush()
    member.housekeeper.expects(due_when_idle(face, entry))


def _ends_by(entry: Entry, expires_on: float) -> None:
    """What the application has opened with a token of its own is replaced in time, where it says when.

    Not where that would be at once: the application would have given a newer token if it had one.
    """
    left = expires_on - time() - NEAR_EXPIRY_S
    if left > 0 and monotonic() + left < entry.retire_at:
        entry.retire_at = monotonic() + left
        entry.retire_reason = "expired_lifetime"


def use_grant(face: Face, grant: Grant) -> None:
    """A thread of this process asked for the right to open, and the books have granted it by now."""
    waiter = face.waiter_for(grant.key, grant.ticket)
    if waiter is None or (waiter.opens_here and not waiter.give(grant)):
        face.member.decline(grant, face.holdings)
        face.poke(grant.key)
    elif not waiter.opens_here:
        open_beside(face, grant, waiter)


def open_beside(face: Face, grant: Grant, waiter: LocalWaiter) -> None:
    """Have a granted resource opened in a thread of its own; it goes to the waiter that is next then.

    waiter: the thread that asked, which hears if the hook raises.
    """
    context = waiter.context.copy()  # two openings may be made for one thread, one after its time
    face.member.openers.add(lambda: context.run(_open_for_waiter, face, grant, waiter))


def _open_for_waiter(face: Face, grant: Grant, waiter: LocalWaiter) -> None:
    holdings = face.holdings
    entry = holdings.table.get(grant.number)
    if entry is None:
        waiter.give(Retry)  # the session was lost, and the grant with it
        return
    if not face.begins_opening(grant, waiter):
        face.member.decline(grant, holdings)
        face.poke(grant.key)
        return
    try:
        inside.opener = True
        # Who waits for nobody does not wait for somebody else's token either.
        open_resource(entry, grant, 0.0 if waiter.insists else None, waiter.bearer)
    except BaseException as error:  # noqa: BLE001  # the thread that asked raises it, or it is logged
        if not waiter.give(Failure(error)):
            log.warning("%s; the checkout that wanted it had gone", error)
        face.poke(grant.key)
        return
    finally:
        inside.opener = False
    if waiter.insists and waiter.give(entry):
        return
    queue = face.waiters.get(grant.key)
    if not queue or not give_to_oldest(queue, entry):
        shelve(entry)


@logged_afterwards
def open_for_shelf(face: Face, grant: Grant) -> None:
    """Use a grant for which nobody waits: `min_size` resources are kept open."""
    holdings = face.holdings
    entry = holdings.table.get(grant.number)
    if entry is None:
        return
    try:
        bearer = face.identities.own(None)
    except PoolError as error:
        log.warning("%s; it is tried again later (min_size)", error)
        give_up_opening(entry, _text_of(error), counted=True)
        return
    if grant.key != face.default_key:
        # A token has told that the recipe's own identity is another one; the books know that by now.
        face.member.decline(grant, holdings)
        return
    try:
        open_resource(entry, grant, None, bearer)
    except OpenFailedError as error:
        log.warning("%s; it is tried again later (min_size)", error)
    except BaseException:
        log.exception("pool %r: opening failed; it is tried again later (min_size)", face.name)
    else:
        shelve(entry)


def _text_of(error: BaseException, secret: str = "") -> str:
    """Class and message, whatever the recipe put into them: it travels, and is shown to others.

    secret: the token that the hook was given, which is left out.
    """
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        log.warning("a hook raised an error that has no text", exc_info=True)
        text = type(error).__name__
    if secret:
        text = text.replace(secret, HIDDEN)
    return (
        without_secrets(text[:_LONGEST_READ])[:_LONGEST_TEXT]
        .encode("utf-8", "backslashreplace")
        .decode()
    )


def _configure(face: Face, entry: Entry) -> None:
    try:
        face.recipe.configure(entry.resource)
        face.recipe.opened(entry.resource)
    except BaseException:
        face.count("hook_errors")
        raise
