"""What lies idle in a pool, who waits for it, and whether it is wanted elsewhere (rule 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from mppool.core.events import CloseReason, IdleTooLong, Returned
from mppool.process.waiter import LocalWaiter, first_ready, give_to_oldest, wake_oldest
from mppool.worker.inventory import AT_ONCE, Inventory, PoolEntry
from mppool.worker.line import Line
from mppool.worker.shelves import NO_SHELF, Shelves, lay_where_it_lay

if TYPE_CHECKING:
    from collections import deque

    from mppool.ids import GrantNumber
    from mppool.options import PoolOptions
    from mppool.worker.context import Context
    from mppool.worker.durations import Durations

TURN_S = 0.005
"""For so long after a resource was handed to a waiting thread, its releases wake the next thread and do not hand it
over: the thread that gives back may take it again before the other is awake. So threads that use a resource very
briefly, again and again, take turns instead of waiting for each other's wake-ups at each use."""


class Idle:
    """Idle resources, waiting threads, and contention. A forked child starts with another one.

    `contended` (every released resource is brought back to the books) and `attention` (somebody waits, here or
    elsewhere) are guarded by the inventory's lock, and read without it: a release appends first and reads `attention`
    then; a thread that sets it sweeps the shelf afterwards. So one of the two sees the other, and nothing is left lying
    while somebody waits (rule 6).

    plain: whether a release is nothing but an append (and a look at `attention`).
    has_lanes: whose turn it is, the books decide: while anybody waits, here or elsewhere, all goes there.
    settled: but for this lane, which waits alone and has its right; None: there is none. Guarded as `contended`, and over
        when nobody waits here.
    exchanges: whether what is brought back may be closed for another one, which is opened by the thread that has closed it.
    own_key: of the pool's own identity, whose shelf stays. borrowed: what a background check has taken for a moment.
    lent_ahead: what is lent to somebody who has not asked yet, and lies as idle as on a shelf (hosts do that).
    on_contended: told of each change, without a lock.
    forgotten: told of each other key of which nothing is left, under the inventory's lock.
    close_soon: closes, in another thread, a resource that is not to be lent any more.
    """

    def __init__(
        self,
        context: Context,
        inventory: Inventory,
        options: PoolOptions,
        durations: Durations,
        plain: bool,
        close_soon: Callable[[PoolEntry, CloseReason], None],
        forgotten: Callable[[str], None],
    ) -> None:
        self._context = context
        self._inventory = inventory
        self.plain = plain
        self._keep = options.keep
        self.has_lanes = options.lanes is not None
        self._close_soon = close_soon
        self._forgotten = forgotten
        self.own_key = ""
        self.exchanges = False
        self.contended = False
        self.settled: str | None = None
        self.attention = False
        self.borrowed: PoolEntry | None = None
        self.lent_ahead: set[GrantNumber] = set()
        self.on_contended: Callable[[bool], None] | None = None
        self.shelves = Shelves(is_lifo=options.order == "lifo")
        self.line = Line(context, inventory, options, durations, self)

    def own_popper(self, *, is_known: bool) -> Callable[[], PoolEntry]:
        """What a checkout that names nobody takes from at once.

        is_known: without a token. Where only a token tells for whom, it finds nothing.
        """
        shelf = self.shelves.of(self.own_key) if is_known else NO_SHELF
        return self.shelves.popper_of(shelf)

    def lying(self, key: str) -> int:
        """How many resources of a key lie idle."""
        return len(self.shelves.by_key.get(key, NO_SHELF))

    def forget(self, key: str) -> None:
        """Where the sub-pool of an identity is empty, nothing is kept of it. Caller holds the inventory's lock."""
        if key != self.own_key and self.line.is_void(key):
            self.line.forget(key)
            self.shelves.forget(key)
            self._forgotten(key)

    # --- putting back ------------------------------------------------------------------------------------

    def put_back(self, entry: PoolEntry) -> None:
        """Put a resource on its shelf, and look whether somebody wants it."""
        entry.shelf.append(entry)
        self.look_after(entry)

    def put_where_it_lay(self, entry: PoolEntry) -> None:
        """Put a resource back that was borrowed for a moment."""
        lay_where_it_lay(entry)
        self.look_after(entry)

    def put_kept(self, entry: PoolEntry) -> None:
        """Put a resource back that the books do not want."""
        if not self.has_lanes:
            self.put_where_it_lay(entry)
            return
        # Not brought back at once, or the two would send it to and fro.
        lay_where_it_lay(entry)
        if entry.retire_at == AT_ONCE:
            self._close_if_shelved(entry, entry.retire_reason)
        queue = self.line.waiters.get(entry.key)
        if queue:  # it has come since, and the books may not know of it yet
            wake_oldest(queue)
        elif not self._keep:
            self._close_if_shelved(entry, "expired_idle")

    def look_after(self, entry: PoolEntry) -> None:
        """What was put on a shelf may be wanted elsewhere, or not be wanted at all any more.

        A thread that changes either sets it first and sweeps the shelf afterwards. So either that thread finds the
        resource on the shelf, or the change is seen here. Its end may have come while a hook ran: the housekeeper
        has not found it on the shelf then.
        """
        if entry.retire_at <= monotonic():
            self._close_if_shelved(entry, entry.retire_reason)
        if self.attention:
            self._attend(entry)
        if not self._keep and not self.line.waiters.get(entry.key):
            self._close_if_shelved(entry, "expired_idle")

    def nobody_waits(self, key: str) -> None:
        """The last thread that waited for a key has left: what lay there for it, in a pool that keeps nothing, ends."""
        if not self._keep:
            while (entry := self.shelves.take(key)) is not None:
                self._close_soon(entry, "expired_idle")

    def _close_if_shelved(self, entry: PoolEntry, reason: CloseReason) -> None:
        """Close a resource that is not to be lent any more, unless somebody has taken it from its shelf."""
        if entry.take_from_shelf():
            self._close_soon(entry, reason)

    def _attend(self, entry: PoolEntry) -> None:
        """Somebody waits, here or elsewhere: what was put on this shelf goes there."""
        key = entry.key
        if self.contended or self.has_lanes:
            if self.settled is not None and self._stays_in_lane(entry, self.settled):
                return
            # Not more than lies here now: where the books are in this process, what they do not want is back at once.
            self.sweep(entry.shelf, len(entry.shelf), 0.0)
            return
        queue = self.line.waiters.get(key)
        if not queue:
            return
        now = monotonic()
        if now < entry.handed_at + TURN_S:
            wake_oldest(queue)
            return
        shelf = entry.shelf
        while shelf and (waiter := first_ready(queue)) is not None:
            try:
                given = shelf.popleft()
            except IndexError:
                return
            given.handed_at = now
            if not (waiter.give(given) or give_to_oldest(queue, given)):
                self.put_back(given)  # and look again: somebody else may wait by now
                return

    def _stays_in_lane(self, entry: PoolEntry, lane: str) -> bool:
        """What was used in this lane goes to its oldest waiter here. False: it does not, and lies on its shelf."""
        if entry.lane != lane or entry.retire_at == AT_ONCE:
            return False
        for waiter in list(self.line.waiters.get(entry.key, ())):
            if waiter.lane != lane or not waiter.is_ready:
                continue
            if not entry.take_from_shelf():
                return True  # a checkout was quicker
            if waiter.give(entry):
                return True
            entry.shelf.append(entry)
        return False

    def give(self, entry: PoolEntry, ticket: int) -> None:
        """The books give it to the thread with this ticket; else the oldest that waits has it, or the shelf."""
        if not self.line.give_to(entry.key, ticket, entry):
            self.put_back(entry)

    def give_opened(self, entry: PoolEntry, waiter: LocalWaiter) -> None:
        """It was opened on behalf of this waiter, and goes to the thread that has waited for longest; else to the shelf.

        A waiter that insists waits for this one alone.
        """
        if (waiter.insists or self.has_lanes) and waiter.give(entry):
            return
        queue = None if self.has_lanes else self.line.waiters.get(entry.key)
        if not queue or not give_to_oldest(queue, entry):
            self.put_back(entry)

    # --- bringing back to the books ----------------------------------------------------------------------

    def set_contended(self, contended: bool, settled: str | None = None) -> None:
        """Whether every released resource is brought back. settled: but for those of this lane."""
        with self._inventory.lock:
            is_new = (contended, settled) != (self.contended, self.settled)
            self.contended = contended
            self.settled = settled
            self.look_whether_attention()
        if not is_new:  # as most of the time: those who came later have seen it
            return
        if self.on_contended is not None:
            self.on_contended(contended)
        if contended:  # the books must know what is wanted here
            for key in list(self.line.waiters):
                self.line.poke(key, all_of_them=self.has_lanes and settled is None)

    def look_whether_attention(self) -> None:
        """Threads have begun, or stopped, to wait. Caller holds the inventory's lock."""
        self.attention = self.contended or bool(self.line.waiters)
        if not self.attention:
            self.settled = None

    def sweep_all(self, most: int, idle_for: float) -> None:
        """Bring back up to `most` idle resources, of whatever keys.

        This comes again and again while somebody waits.
        """
        for shelf in self.shelves.with_any():
            if most <= 0:
                break
            most -= self.sweep(shelf, most, idle_for)

    def sweep(self, shelf: deque[PoolEntry], most: float, idle_for: float) -> int:
        """Bring back up to `most` resources of a shelf, those idle for longest first; how many.

        Each stays on the shelf until it is taken, so that no checkout finds the shelf empty meanwhile.
        """
        brought = 0
        while brought < most:
            released_by = monotonic() - idle_for if idle_for else math.inf
            try:
                entry = shelf[0]
            except IndexError:
                break
            if entry.released_at > released_by:
                break
            if entry.take_from_shelf():
                self.bring_back(entry)
                brought += 1
        return brought

    def bring_back(self, entry: PoolEntry, event: Returned | IdleTooLong | None = None) -> None:
        """Lay a resource aside until the books say what becomes of it."""
        if event is None:
            event = Returned(entry.number, monotonic() - entry.released_at, self.exchanges)
        entry.inventory.bring_back(entry, event)
        self._context.link.flush()

    # --- taking for a moment -----------------------------------------------------------------------------

    def borrow(self, wanted: Callable[[PoolEntry], bool]) -> Iterator[PoolEntry]:
        """Take the idle resources that are wanted, one after the other, each for a moment; none while somebody waits.

        The caller puts each back, or closes it, before it takes the next one.
        """
        try:
            for shelf in list(self.shelves.by_key.values()):
                for entry in list(shelf):
                    if self.attention:
                        return
                    if wanted(entry):
                        self.borrowed = entry
                        if not entry.take_from_shelf():
                            continue  # a checkout was quicker
                        yield entry
                        self.borrowed = None
        finally:
            self.borrowed = None
