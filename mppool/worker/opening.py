"""Opening a resource that the books have granted: in the thread that asked, or beside it."""

from __future__ import annotations

import os
import random
import traceback
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING

from mppool.core.decisions import NOBODY, Grant
from mppool.credentials.secrets import repeats, secret_of
from mppool.credentials.token_struct import NEAR_EXPIRY_S
from mppool.errors import ForkedLease, PoolError
from mppool.errors import OpenFailed as OpenFailedError
from mppool.ids import epoch_of, identity_of
from mppool.logs import Log, logged_afterwards
from mppool.process.waiter import LocalWaiter, Retry
from mppool.recipe import LoopIsOver, Opening
from mppool.redaction import HIDDEN, forget_locals, without_secrets
from mppool.worker.audit import give_up_opening
from mppool.worker.due import due_when_idle
from mppool.worker.hints import refuse_none
from mppool.worker.inventory import NEVER, PoolEntry
from mppool.worker.local_pool import LocalPool

if TYPE_CHECKING:
    from mppool.credentials.token_struct import TokenInfo
    from mppool.worker.principal import Principal

log = Log("mppool")

# Not the application's generator: it may have seeded that one, and count on its numbers.
_chance = random.SystemRandom()

_LONGEST_TEXT = 2000
_LONGEST_READ = 8000
"""What is longer is not searched for secrets, and not told."""

LIFETIME_JITTER = 0.1
"""The part of `max_lifetime` by which a resource may die earlier."""


LOGIN_CHANGE_S = 60.0
"""Within so many seconds after a secret has changed, what was opened with the old one ends."""


class Failure:
    """Answer to the waiter for whom a resource was being opened: what its hook raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@logged_afterwards
def open_resource(
    entry: PoolEntry, grant: Grant, left: float | None, bearer: Principal | None = None
) -> None:
    """Use a fresh grant: open and configure the resource. Raises OpenFailed, with its cause.

    left: seconds of the checkout's timeout, for waiting; None: no end. The hooks may take their own time where
        there are none left.
    bearer: whose token the recipe gets; None where no credential is involved.
    """
    local, member = entry.local, entry.local.member
    started = monotonic()
    token: TokenInfo | None = None
    try:
        token = None if bearer is None else bearer.token(left)
        opening = Opening(grant.opened_before, identity_of(entry.key), token, left or None)
        opening.label = _label(local, grant)
        _run_hooks(local, entry, opening)
        local.fence.on(entry.resource)
    except Exception as error:
        if bearer is not None and token is not None and local.recipe.refuses_login(error):
            bearer.refused(token)
        # No variable holds the secret: this frame is part of the traceback, and some reporters show all of it.
        text = _text_of(error, secret_of(token))
        is_told = not repeats(error, secret_of(token))
        forget_locals(error)
        give_up_opening(entry, text, counted=True)
        if isinstance(error, OpenFailedError) or entry.inventory.inherited:
            raise
        failed = OpenFailedError(f"pool {local.name!r}: opening a resource failed: {text}")
        raise failed from (error if is_told else None)
    except BaseException as error:
        # What the hook had half opened lives as long as its frames: they end before the slot is given back.
        traceback.clear_frames(error.__traceback__)
        # Where nobody waits nobody was interrupted: the hook itself wants to end the process.
        give_up_opening(entry, type(error).__name__, counted=grant.ticket == NOBODY)
        raise
    seconds = monotonic() - started
    if bearer is not None and token is not None:
        bearer.note(entry, token)
    _enter_as_open(entry, started + seconds, seconds, opening)
    if opening.login and token is None:
        asked_at = max(started, opening.login_at)
        member.housekeeper.expects(_let_older_logins_end(entry, asked_at, opening.login))
    member.link.flush()
    member.housekeeper.expects(monotonic() if local.keepers else due_when_idle(local, entry))


def _label(local: LocalPool, grant: Grant) -> str:
    """Of a session, for people at the database. With the machine, and the number of its server, where caps are shared."""
    machine = local.member.link.machine
    where = f"{machine}.{epoch_of(grant.number)}/" if machine else ""
    return f"{local.member.name}/{local.name}/{where}{os.getpid()}"


def _run_hooks(local: LocalPool, entry: PoolEntry, opening: Opening) -> None:
    """Call what opens and configures the resource, and keep it with the entry."""
    local.hooks.open(opening, entry.opened)
    if not entry.inventory.mark[0]:
        raise ForkedLease(
            f"pool {local.name!r}: this process was forked inside the open hook; the resource belongs "
            "to its parent; check out again"
        )
    if not entry.opened:
        raise RuntimeError("the open hook raised StopIteration")
    refuse_none(local.name, entry.opened)
    entry.resource = entry.opened[0]
    local.hooks.configure(entry.resource)


def _enter_as_open(entry: PoolEntry, now: float, seconds: float, opening: Opening) -> None:
    """The resource is open: from now on it can be lent, and ends at its time."""
    local: LocalPool = entry.local
    lifetime, ends_at = local.options.max_lifetime, NEVER
    if lifetime is not None:
        # Each draws its own instant, so that a fleet opened together does not die together.
        ends_at = now + lifetime * (1 - LIFETIME_JITTER * _chance.random())
    if opening.token is None and isinstance(opening.expires_on, (int, float)):
        ends_at = min(ends_at, _end_of_own_token(opening.expires_on, now))
    entry.inventory.opened(entry, seconds, now, ends_at)


def _let_older_logins_end(entry: PoolEntry, asked_at: float, login: str) -> float:
    """A secret has changed: what was opened with another one ends soon, each at its own instant.

    asked_at: when this login was asked for; what was open by then is older. login: its digest, which stands where that of a
        token does for those who open with tokens. Returns when the first is due.
    """
    due = NEVER
    with entry.inventory.lock:
        entry.token = login
        for other in entry.inventory.table.values():
            is_older = other.state == "open" and other.opened_at <= asked_at
            if (
                is_older
                and other.token != login
                and (other.local, other.key) == (entry.local, entry.key)
            ):
                other.token = login  # once
                ends = monotonic() + LOGIN_CHANGE_S * _chance.random()
                if ends < other.retire_at:
                    other.retire_at, other.retire_reason = ends, "retired"
                due = min(due, other.retire_at)
    return due


def _end_of_own_token(expires_on: float, now: float) -> float:
    """What the application has opened with a token of its own is replaced in time, where it says when.

    Not where that would be at once: the application would have given a newer token if it had one.
    """
    left = expires_on - time() - NEAR_EXPIRY_S
    return now + left if left > 0 else NEVER


def use_grant(local: LocalPool, grant: Grant) -> None:
    """A thread of this process asked for the right to open, and the books have granted it by now."""
    waiter = local.idle.line.waiter_for(grant.key, grant.ticket)
    if waiter is not None and waiter.opens_here:
        local.idle.line.opens_for_itself(grant)
    if waiter is None or (waiter.opens_here and not waiter.give(grant)):
        local.member.decline(grant, local.inventory)
        local.idle.line.poke(grant.key)
    elif not waiter.opens_here:
        open_beside(local, grant, waiter)
        local.idle.line.expects_opening(grant.key)


def open_beside(local: LocalPool, grant: Grant, waiter: LocalWaiter) -> None:
    """Have a granted resource opened in a thread of its own; it goes to the waiter that is next then.

    waiter: the thread that asked, which hears if the hook raises.
    """
    waiter.opening = grant.number
    context = waiter.context_to_open_in()
    local.member.openers.add(partial(context.run, _open_for_waiter, local, grant, waiter))


def _open_for_waiter(local: LocalPool, grant: Grant, waiter: LocalWaiter) -> None:
    inventory = local.inventory
    entry = inventory.table.get(grant.number)
    if entry is None:
        waiter.give(Retry)  # the session was lost, and the grant with it
        return
    if not local.idle.line.begins_opening(grant, waiter):
        local.member.decline(grant, inventory)
        waiter.opening = None
        local.idle.line.poke(grant.key)
        return
    try:
        # A checkout that waits for nobody does not wait for another one's token either.
        open_resource(entry, grant, 0.0 if waiter.insists else None, waiter.bearer)
    except BaseException as error:  # noqa: BLE001  # the thread that asked raises it, or it is logged
        if not waiter.give(Failure(error)):
            log.warning("%s; the checkout that wanted it had gone", error)
        local.idle.line.arrived(grant)
        local.idle.line.poke(grant.key)
        return
    local.idle.give_opened(entry, waiter)
    waiter.opening = None
    local.idle.line.arrived(grant)
    if waiter.is_open:
        waiter.poke()  # somebody else got it
    local.idle.line.poke(grant.key)  # less is on its way than before


@logged_afterwards
def open_for_shelf(local: LocalPool, grant: Grant) -> None:
    """Use a grant for which nobody waits: `min_size` resources are kept open."""
    inventory = local.inventory
    entry = inventory.table.get(grant.number)
    if entry is None:
        return
    try:
        bearer = local.identities.own(None)
    except PoolError as error:
        log.warning("%s; it is tried again later (min_size)", error)
        give_up_opening(entry, _text_of(error), counted=True)
        return
    if grant.key != local.default_key or not local.recipe.fills():
        # A token has told that the recipe's own identity is another one; the books know that by now.
        # Or its event loop has ended meanwhile; they know that too.
        local.member.decline(grant, inventory)
        return
    try:
        open_resource(entry, grant, None, bearer)
    except OpenFailedError as error:
        log.warning("%s; it is tried again later (min_size)", error)
    except LoopIsOver:
        log.debug("pool %r: an event loop ended while it opened (min_size)", local.name)
    except BaseException:
        log.exception("pool %r: opening failed; it is tried again later (min_size)", local.name)
    else:
        local.idle.put_back(entry)


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
