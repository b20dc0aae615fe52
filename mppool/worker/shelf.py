"""The shelves of a pool: where its idle resources lie, how they are taken, and who gets what is put back.

A shelf is a deque, whose single operations are atomic, so it needs no lock: whoever has taken a resource
from its shelf owns it. Several threads may be after the same one: the quickest gets it, and for the others
`remove` raises, which only says that they have to look on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from mppool.core.events import CloseReason, IdleTooLong, Returned
from mppool.worker.inventory import AT_ONCE, Entry
from mppool.worker.waiter import give_to_oldest, wake_oldest

if TYPE_CHECKING:
    from mppool.worker.face import Face

TURN_S = 0.005
"""For so long after a resource was handed to a waiting thread, its releases wake the next thread and do not hand it
over: the thread that gives back may take it again before the other is awake. So threads that use a resource very
briefly, again and again, take turns instead of waiting for each other's wake-ups at each use."""

_NO_SHELF: deque[Entry] = deque()
"""Of a key of which there is nothing. It stays empty: resources append to the shelves that they know."""


def forget_shelf(face: Face, key: str) -> None:
    """The sub-pool of an identity is empty: nothing is kept of it. Caller holds the inventory's lock.

    Resources append themselves to the shelf that they know, so it must be the last of them that is gone.
    """
    demand = face.line.demands.get(key)
    if key != face.default_key and (demand is None or demand.is_void):
        face.line.forget(key)
        face.shelves.pop(key, None)
        face.identities.forget_name(key)


# --- taking ----------------------------------------------------------------------------------------------


def own_popper(face: Face) -> Callable[[], Entry]:
    """What a checkout that names nobody takes from at once; nothing, where only a token tells for whom."""
    known = face.identities.own_is_known
    return _popper(face, face.shelf_of(face.default_key) if known else _NO_SHELF)


def popper_of(face: Face, key: str) -> Callable[[], Entry]:
    """Takes from the shelf of a key; while there is none it finds nothing."""
    return _popper(face, face.shelves.get(key, _NO_SHELF))


def _popper(face: Face, shelf: deque[Entry]) -> Callable[[], Entry]:
    # Releases append on the right, so the oldest lie on the left.
    return shelf.pop if face.options.order == "lifo" else shelf.popleft


def take(face: Face, key: str) -> Entry | None:
    """A resource from the shelf of a key, or None."""
    try:
        return popper_of(face, key)()
    except IndexError:
        return None


def take_idle(face: Face, wanted: Callable[[Entry], bool]) -> list[Entry]:
    """Take from the shelves whatever is wanted; each is owned by the caller then."""
    taken = []
    for shelf in list(face.shelves.values()):
        for entry in list(shelf):
            if wanted(entry):
                try:
                    shelf.remove(entry)
                except ValueError:
                    continue  # a checkout was quicker
                taken.append(entry)
    return taken


def borrow(face: Face, wanted: Callable[[Entry], bool]) -> Iterator[Entry]:
    """Take the idle resources that are wanted, one after the other, each for a moment; none while somebody waits.

    Whoever goes through them puts each back, or closes it, before the next one is taken.
    """
    try:
        for shelf in list(face.shelves.values()):
            for entry in list(shelf):
                if face.attention or face.closed:
                    return
                if wanted(entry):
                    face.borrowed = entry
                    try:
                        shelf.remove(entry)
                    except ValueError:
                        continue  # a checkout was quicker
                    yield entry
                    face.borrowed = None
    finally:
        face.borrowed = None


# --- putting back ----------------------------------------------------------------------------------------


def shelve(entry: Entry) -> None:
    """Put a resource on its shelf, and look whether somebody wants it."""
    entry.shelf.append(entry)
    look_after_shelving(entry)


def shelve_where_it_lay(entry: Entry) -> None:
    """Put a resource back that was borrowed for a moment: the shelf is in the order of last uses."""
    since = [other.released_at for other in list(entry.shelf)]
    entry.shelf.insert(bisect_left(since, entry.released_at), entry)
    look_after_shelving(entry)


def look_after_shelving(entry: Entry) -> None:
    """What was put on a shelf may be wanted elsewhere, or not be wanted at all any more.

    Both flags are set first by whoever sets them, and the shelf is swept afterwards: either he finds the
    resource there, or it is seen here.
    """
    if entry.retire_at == AT_ONCE:
        _close_if_shelved(entry, entry.retire_reason)
    if entry.face.attention:
        _attend(entry)
    if not entry.face.options.keep:
        _close_if_shelved(entry, "expired_idle")


def _close_if_shelved(entry: Entry, reason: CloseReason) -> None:
    """Close a resource that is not to be lent any more, unless somebody has taken it from its shelf."""
    try:
        entry.shelf.remove(entry)
    except ValueError:
        return
    entry.face.member.close_soon(entry, reason)


def _attend(entry: Entry) -> None:
    """Somebody waits, here or elsewhere: what was put on this shelf goes there."""
    face, key = entry.face, entry.key
    if face.contended:
        # Not more than lies here now: where the books are in this process, what they do not want is back at once.
        sweep(face, key, len(entry.shelf), 0.0)
        return
    queue = face.line.waiters.get(key)
    if not queue:
        return
    now = monotonic()
    if now < entry.handed_at + TURN_S:
        wake_oldest(queue)
        return
    shelf = entry.shelf
    while any(waiter.is_ready for waiter in list(queue)):
        try:
            given = shelf.popleft()
        except IndexError:
            return
        given.handed_at = now
        if not give_to_oldest(queue, given):
            shelve(given)  # and look again: somebody else may wait by now
            return


# --- bringing back to the books --------------------------------------------------------------------------


def sweep(face: Face, key: str, most: float, idle_for: float) -> int:
    """Bring back up to `most` idle resources of a key, those idle for longest first; how many."""
    shelf, brought = face.shelves.get(key, _NO_SHELF), 0
    while brought < most:
        entry = _take_oldest(shelf, idle_for)
        if entry is None:
            break
        bring_back(entry)
        brought += 1
    return brought


def _take_oldest(shelf: deque[Entry], idle_for: float) -> Entry | None:
    """What has been idle for longest, if that is at least so many seconds.

    It stays on the shelf until it is taken, so that no checkout finds the shelf empty meanwhile.
    """
    while True:
        try:
            entry = shelf[0]
            if idle_for and monotonic() - entry.released_at < idle_for:
                return None
            shelf.remove(entry)
        except IndexError:
            return None
        except ValueError:
            continue  # a checkout was quicker
        return entry


def bring_back(entry: Entry, event: Returned | IdleTooLong | None = None) -> None:
    """Lay a resource aside until the books say what becomes of it."""
    event = event or Returned(entry.number, monotonic() - entry.released_at)
    entry.inventory.bring_back(entry, event)
    entry.face.member.flush()
