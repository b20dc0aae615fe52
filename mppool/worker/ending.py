"""The end of a resource: its owner closes it, or it is marked so that its next owner closes it."""

from __future__ import annotations

import random
import traceback
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

from mppool.core.events import CloseReason
from mppool.logs import Log, logged_afterwards
from mppool.worker.inventory import AT_ONCE, PoolEntry

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.worker.own_pool import OwnPool

log = Log("mppool")

LONG_CLOSE_S = 2.0
"""A close that takes longer is warned of: until it returns, the slot is not free."""

# Not the application's generator: it may have seeded that one, and count on its numbers.
_chance = random.SystemRandom()


# --- closing ---------------------------------------------------------------------------------------------


@logged_afterwards
def close(entry: PoolEntry, reason: CloseReason) -> None:
    """Close a resource that the caller owns. Its slot is free when its close has returned."""
    if entry.inventory.begin_close(entry, monotonic()):
        finish_close(entry, reason)


def begin_close(entry: PoolEntry) -> bool:
    """See Inventory.begin_close."""
    return entry.inventory.begin_close(entry, monotonic())


def close_soon(entry: PoolEntry, reason: CloseReason) -> None:
    """Close a resource that the caller owns, in another thread."""
    if begin_close(entry):
        entry.local.member.chores.add(lambda: finish_close(entry, reason))


def close_for_successor(entry: PoolEntry) -> None:
    """Close a resource that the caller owns, and open what comes in its slot, in one thread of those that open."""
    openers = entry.local.member.openers

    def close_and_open() -> None:
        with openers.done_here():
            finish_close(entry, "moved")

    if begin_close(entry):
        openers.add(close_and_open)


@logged_afterwards
def finish_close(entry: PoolEntry, reason: CloseReason) -> None:
    """Run the hook, and tell the books when it has returned."""
    local: OwnPool = entry.local
    local.member.housekeeper.expects(entry.closing_at + close_limit(entry))
    if reason == "killed":
        local.hooks.run_cancel(entry.resource)  # its user is in the middle of something, perhaps
    try:
        local.hooks.close(entry.resource)
    except BaseException as error:
        # Interrupted, perhaps before anything was closed, and its frames or its user may keep it: it is
        # closed once more, because it must have ended before its slot is free.
        traceback.clear_frames(error.__traceback__)
        if entry.inventory.mark[0]:
            local.hooks.close_again(entry.resource)
        raise
    finally:
        if entry.inventory.mark[0]:
            successor = entry.inventory.closed(entry, reason)
            if successor is not None:
                local.member.go_on(successor)
            local.member.is_gone()


def end_leases(local: OwnPool, count: int, why: str) -> None:
    """Close so many resources: those that lie idle first, then what was detached, then what has been lent for longest."""
    idle = list(islice(local.idle.shelves.one_by_one(lambda entry: True), count))
    for entry in idle:
        close_soon(entry, "retired")
    left = count - len(idle)
    lent = [entry for entry in local.entries() if entry.counts_as_open] if left else []
    lent.sort(key=lambda entry: entry.lent_at)
    ended = [entry for entry in lent[:left] if entry.inventory.end_early(entry, why)]
    for entry in ended:
        close_soon(entry, "killed")
    if ended:
        log.warning("pool %r: %d leases are ended: %s", local.name, len(ended), why)


# --- giving up -------------------------------------------------------------------------------------------


def close_limit(entry: PoolEntry) -> float:
    """After how many seconds a close has to be looked at: it is warned of, or its slot is given back."""
    limit = entry.local.options.check_timeout
    return LONG_CLOSE_S if limit is None or not entry.doubtful else min(limit, LONG_CLOSE_S)


def give_up(entry: PoolEntry) -> bool:
    """See Inventory.give_up."""
    if not entry.inventory.give_up(entry, monotonic()):
        return False
    entry.local.member.is_gone()
    return True


def close_given_up(entry: PoolEntry) -> None:
    """The check has returned after all."""
    resource = entry.inventory.take_given_up(entry)
    if resource is not None and not entry.inventory.inherited:
        entry.local.hooks.close_again(resource)


def give_up_closing(entry: PoolEntry) -> None:
    """See Inventory.give_up_closing."""
    entry.inventory.give_up_closing(entry)
    entry.local.member.is_gone()


# --- the end of a lease ----------------------------------------------------------------------------------


def cancel(entry: PoolEntry, is_lent: Callable[[], bool]) -> bool:
    """Have what runs on a lent resource end with an error; False where the recipe cannot.

    is_lent: whether its lease still has it. A release closes it from now on, so that
        nobody else's call is ended.
    """
    hooks = entry.local.hooks
    if hooks.cancel is None:
        return False
    entry.inventory.retire([entry])
    return is_lent() and hooks.run_cancel(entry.resource)


# --- letting end -----------------------------------------------------------------------------------------


def retire_older_than(
    local: OwnPool, generation: int, key: str | None, *, hung: bool = False
) -> list[PoolEntry]:
    """Let everything of an older generation end: what is idle is returned, to be closed by the caller.

    key: only resources of this key are meant; None: all.
    hung: one of them has not answered at all, see `PoolEntry.doubtful`.
    """
    with local.inventory.lock:
        local.note_retired(generation, key)
        meant = [
            entry
            for entry in local.inventory.table.values()
            if entry.local is local
            and key in (None, entry.key)
            and (local.closed or entry.generation < generation)
        ]
        local.inventory.retire(meant, hung=hung)
    return local.idle.shelves.take_all(lambda entry: entry.retire_at == AT_ONCE)


def retire_over(local: OwnPool, generation: int, seconds: float) -> None:
    """Let everything of an older generation end, each at an instant of its own within so many seconds.

    Until then it is lent as always. A process that has one of them alone ends it at any instant of all.
    """
    now = monotonic()
    with local.inventory.lock:
        local.note_retired(generation, None)
        meant = [
            entry
            for entry in local.inventory.table.values()
            if entry.local is local and entry.generation < generation
        ]
        step = seconds / max(1, len(meant))
        instants = [now + (number + _chance.random()) * step for number in range(len(meant))]
        local.inventory.retire_by(zip(meant, instants, strict=True))
    if instants:
        local.member.housekeeper.expects(instants[0])


def retire(local: OwnPool, entries: list[PoolEntry]) -> None:
    """Let these end: those that lie idle soon, the others when they are released."""
    local.inventory.retire(entries)
    for entry in local.idle.shelves.take_all(lambda entry: entry.retire_at == AT_ONCE):
        close_soon(entry, entry.retire_reason)


def drop_token(local: OwnPool, key: str, token: str) -> None:
    """Let what was opened for this key with the token of this digest end: what is idle soon, what is lent at its release."""
    retire(local, [one for one in local.entries() if one.token == token and one.key == key])
