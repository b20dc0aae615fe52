"""The end of a resource: it is closed by whoever owns it, or marked so that its next owner closes it."""

from __future__ import annotations

import traceback
from time import monotonic
from typing import TYPE_CHECKING

from mppool.core.events import Closed, CloseReason
from mppool.logs import Log, logged_afterwards
from mppool.recipe import overrides
from mppool.worker.entry import AT_ONCE, LONG_CLOSE_S, Entry
from mppool.worker.inside import inside
from mppool.worker.shelf import forget_shelf, take_idle

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.worker.face import Face

log = Log("mppool")


# --- closing ---------------------------------------------------------------------------------------------


@logged_afterwards
def close(entry: Entry, reason: CloseReason) -> None:
    """Close a resource that the caller owns. Its slot is free when its close has returned."""
    if begin_close(entry):
        finish_close(entry, reason)


def begin_close(entry: Entry) -> bool:
    """From now on nobody else closes it, or counts it as idle or in use. False if somebody does already."""
    if entry.holdings.inherited:
        return False  # not before the lock: its holder may not exist here
    with entry.holdings.lock:
        if entry.state == "closing":
            return False  # a hook that closes its own resource; two threads that both want to
        entry.state = "closing"
        entry.face.line.demand_for(entry.key).ended(entry.number)
        entry.warned = False
        entry.closing_at = monotonic()
    return True


@logged_afterwards
def finish_close(entry: Entry, reason: CloseReason) -> None:
    """Run the hook, and tell the books when it has returned."""
    face = entry.face
    face.member.housekeeper.expects(entry.closing_at + close_limit(entry))
    if reason == "killed" and overrides(face.recipe, "cancel"):
        _run_cancel(entry)  # its user is in the middle of something, perhaps
    inside.hooks += 1
    try:
        face.recipe.close(entry.resource)
    except Exception:
        face.count("hook_errors")
        log.warning("pool %r: closing a resource raised; it is gone", face.name, exc_info=True)
    except BaseException as error:
        # Interrupted, perhaps before anything was closed, and its frames or its user may keep it: it is
        # closed once more, for it must have ended before its slot is free.
        traceback.clear_frames(error.__traceback__)
        if not entry.holdings.inherited:
            _close_again(entry)
        raise
    finally:
        inside.hooks -= 1
        if not entry.holdings.inherited:
            _forget(entry, reason)


def _close_again(entry: Entry) -> None:
    try:
        entry.face.recipe.close(entry.resource)
    except Exception:
        log.debug("pool %r: it was closed already", entry.face.name, exc_info=True)


def _forget(entry: Entry, reason: CloseReason) -> None:
    face, holdings = entry.face, entry.holdings
    entry.resource = None
    with holdings.lock:
        if entry.number in holdings.table:  # else it was given up before
            # Told first: what is interrupted in between stays in the table, where the audit finds it.
            holdings.outbox.append(Closed(entry.number, reason))
            holdings.side.pop(entry.number, None)
            del holdings.table[entry.number]
            face.past_uses += entry.uses
            forget_shelf(face, entry.key)
        else:
            holdings.given_up.pop(entry.number, None)
    face.member.flush()
    if face.member.leaving:
        face.member.wake()  # this may have been the last


# --- giving up -------------------------------------------------------------------------------------------


def close_limit(entry: Entry) -> float:
    """After how many seconds a close has to be looked at: it is warned of, or its slot is given back."""
    limit = entry.face.options.check_timeout
    return LONG_CLOSE_S if limit is None or not entry.doubtful else min(limit, LONG_CLOSE_S)


def give_up(entry: Entry) -> bool:
    """Free the slot of a resource whose check hangs: nobody can close what is in use there.

    False if it is being closed already, or is somebody else's.
    """
    if not begin_close(entry):
        return False
    entry.holdings.given_up[entry.number] = entry.resource
    _forget(entry, "unhealthy")
    return True


def close_given_up(entry: Entry) -> None:
    """The check has returned after all."""
    resource = entry.holdings.given_up.pop(entry.number, None)
    if resource is not None and not entry.holdings.inherited:
        try:
            entry.face.recipe.close(resource)
        except Exception:
            log.debug("pool %r: it was closed already", entry.face.name, exc_info=True)


def give_up_closing(entry: Entry) -> None:
    """Free the slot of a doubtful resource whose close hangs: whatever it was connected to is out of reach."""
    entry.holdings.given_up[entry.number] = entry.resource
    _forget(entry, "unhealthy")


# --- the end of a lease ----------------------------------------------------------------------------------


def take_from_lease(entry: Entry) -> bool:
    """End the lease; False if it was killed before. Either this happens, or `kill`."""
    with entry.holdings.lock:
        entry.lent_at = 0.0
        return not entry.killed


def cancel(entry: Entry, is_lent: Callable[[], bool]) -> bool:
    """Have what runs on a lent resource end with an error; False where the recipe cannot.

    is_lent: whether its lease still has it. Closed is closed: whoever releases it from now on closes it, so that
        nobody else's call is ended.
    """
    if not overrides(entry.face.recipe, "cancel"):
        return False
    with entry.holdings.lock:
        entry.retire_at, entry.retire_reason = AT_ONCE, "retired"
    return is_lent() and _run_cancel(entry)


def _run_cancel(entry: Entry) -> bool:
    face = entry.face
    inside.hooks += 1
    try:
        return face.recipe.cancel(entry.resource) is not False
    except Exception:
        face.count("hook_errors")
        log.warning("pool %r: the cancel hook raised", face.name, exc_info=True)
        return False
    finally:
        inside.hooks -= 1


def kill(entry: Entry, lent_at: float) -> bool:
    """End the lease that began then; False if it was released before. The caller owns the resource then."""
    with entry.holdings.lock:
        if entry.lent_at != lent_at or entry.killed or entry.state != "open":
            return False
        entry.killed = True
        return True


# --- letting end -----------------------------------------------------------------------------------------


def retire_older_than(
    face: Face, generation: int, key: str | None, *, hung: bool = False
) -> list[Entry]:
    """Let everything of an older generation end: what is idle is returned, to be closed by the caller.

    key: only resources of this key are meant; None: all.
    hung: one of them has not answered at all, see `Entry.doubtful`.
    """
    with face.holdings.lock:
        if key is None:  # which says it of all keys, so that what was said of each need not be kept
            for each in [each for each, newest in face.retired.items() if newest <= generation]:
                del face.retired[each]
        face.retired[key] = max(generation, face.retired.get(key, 0))
        for entry in face.holdings.table.values():
            meant = entry.face is face and key in (None, entry.key)
            if meant and (face.closed or entry.generation < generation):
                entry.doubtful = entry.doubtful or hung
                entry.retire_at = AT_ONCE
                entry.retire_reason = "retired"
    return take_idle(face, lambda entry: entry.retire_at == AT_ONCE)


def retire(face: Face, entries: list[Entry]) -> None:
    """Let these end: those that lie idle soon, the others when they are released."""
    with face.holdings.lock:
        for entry in entries:
            entry.retire_reason = "retired"
            entry.retire_at = AT_ONCE
    for entry in take_idle(face, lambda entry: entry.retire_at == AT_ONCE):
        face.member.close_soon(entry, entry.retire_reason)


def is_retired(face: Face, key: str, generation: int) -> bool:
    """Whether what was granted in this generation must end. Caller holds the holdings' lock.

    A grant comes on another connection than the word that its generation is over.
    """
    newest = max(face.retired.get(None, 0), face.retired.get(key, 0))
    return face.closed or generation < newest


def forget_retired(face: Face) -> None:
    """Another server counts generations anew, and says at which it is. Caller holds the lock."""
    face.retired.clear()


def drop_token(face: Face, key: str, token: str) -> None:
    """Close what lies idle for this key and was opened with the token of this digest."""
    for entry in take_idle(face, lambda entry: entry.token == token and entry.key == key):
        face.member.close_soon(entry, "retired")
