"""A checkout that found nothing on the shelf: ask the books, wait, open."""

from __future__ import annotations

import logging
import random
import traceback
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NoReturn

from mppool.core.decisions import NOBODY, Grant, Queued, Refuse
from mppool.core.events import Abandoned, Checkout, Opened
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
from mppool.recipe import Opening
from mppool.redaction import HIDDEN, forget_locals, without_secrets
from mppool.worker.audit import give_up_opening
from mppool.worker.bearer import NEAR_EXPIRY_S, repeats, secret_of
from mppool.worker.calls import SESSION_PAUSE_S, SessionLost
from mppool.worker.entry import NEVER, Entry
from mppool.worker.face import Face, identity_of
from mppool.worker.housekeeping import due_when_idle
from mppool.worker.shelf import shelve, take
from mppool.worker.waiter import LocalWaiter

if TYPE_CHECKING:
    from mppool.worker.bearer import Bearer, Token
    from mppool.worker.holdings import Holdings

log = logging.getLogger("mppool")


ASK_GRACE_S = 0.25
"""How long the books may take to answer although the timeout is shorter."""

REFUSAL_GRACE_S = 0.005
"""How much longer than its timeout a checkout waits to be told why there was nothing."""

_LONGEST_TEXT = 2000
_LONGEST_READ = 8000
"""What is longer is not searched for secrets, and not told."""

LIFETIME_JITTER = 0.1
"""The part of `max_lifetime` by which a resource may die earlier."""


class Retry:
    """Answer to a waiter whose session was lost: ask again, with the time that is left."""


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
            entry = self._from_shelf() or self._from_books()
            if entry is None:
                continue
            waited = monotonic() - self._started
            self._face.observe("wait", waited)
            return entry

    def _from_shelf(self) -> Entry | None:
        face = self._face
        while (entry := take(face, self._key)) is not None:
            if face.prepare(entry, monotonic(), self._bearer):
                return entry
        return None

    def _from_books(self) -> Entry | None:
        """One round of asking; None: look again."""
        face = self._face
        if face.closed:
            raise PoolClosed(f"pool {face.name!r} is closed; it hands out nothing any more")
        self._holdings = face.holdings
        self._waiter = waiter = LocalWaiter(self._member.next_ticket(), self._key)
        answer = None
        try:
            face.enqueue(waiter)
            answer = self._ask(waiter)
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
        self._face.dequeue(waiter)
        self._waiter = None

    def _ask(self, waiter: LocalWaiter) -> Any:
        """Entry, Grant, Refuse or Retry."""
        entry = take(self._face, self._key)  # enqueued first, looked again: no release is missed
        if entry is not None:
            return entry
        event = Checkout(self._face.name, self._key, waiter.ticket, self._left())
        try:
            answer = self._member.call(event, self._ask_until)
        except SessionLost:
            # A pause, for the server may be saying farewell; a neighbour's release ends it.
            left = self._left()
            if left == 0:
                return Refuse(waiter.ticket, "timeout", "the server was leaving")
            return (
                waiter.wait(SESSION_PAUSE_S if left is None else min(SESSION_PAUSE_S, left))
                or Retry
            )
        except TimeoutError:
            return Refuse(waiter.ticket, "timeout", "the server did not answer in time")
        if not isinstance(answer, Queued):
            return answer
        self._member.audit.want_again()
        answer = None
        try:
            left = self._left()
            # The books refuse in the same instant, and can say why.
            answer = waiter.wait(None if left is None else left + REFUSAL_GRACE_S)
        finally:
            # A grant for another ticket was passed on by a neighbour: ours is still in the queue.
            if not isinstance(answer, (Grant, Refuse)) or answer.ticket != waiter.ticket:
                self._member.tell(Abandoned(waiter.ticket))
        return answer or Refuse(waiter.ticket, "timeout", "")

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - monotonic())

    def _use(self, answer: Any, holdings: Holdings) -> Entry | None:
        face = self._face
        if isinstance(answer, Entry):
            return answer if face.prepare(answer, monotonic(), self._bearer) else None
        if isinstance(answer, Grant):
            entry = holdings.table.get(answer.number)
            if entry is None:
                return None  # the session was lost, and the grant with it
            try:
                open_resource(entry, answer, self._left(), self._bearer)
            except OpenFailedError as error:
                if face.options.fail_fast or self._left() == 0:
                    raise
                self._last_error = error
                return None
            face.lend(entry, monotonic())
            return entry
        if isinstance(answer, Refuse):
            self._refused(answer)
        return None

    def _hand_on(self, given: Any, holdings: Holdings) -> None:
        """Something was given in the instant in which we stopped waiting: it goes to the next."""
        if isinstance(given, Entry):
            shelve(given)
        elif isinstance(given, Grant):
            self._member.decline(given, holdings)

    def _refused(self, refuse: Refuse) -> NoReturn:
        face = self._face
        if refuse.reason == "timeout":
            face.count("timeouts")
            raise CheckoutTimeout(
                f"pool {face.name!r}: nothing could be had within {self._timeout:g} s"
                f"{': ' + refuse.text if refuse.text else ''}; release leases sooner, raise max_size or "
                "wait longer"
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
        if entry.holdings.forked:
            raise ForkedLease(
                f"pool {face.name!r}: this process was forked inside the open hook; the resource belongs "
                "to its parent; check out again"
            )
        if not entry.opened:
            raise RuntimeError("the open hook raised StopIteration")
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
        if isinstance(error, OpenFailedError) or entry.holdings.forked:
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
