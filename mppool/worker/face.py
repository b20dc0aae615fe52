"""What this process has of one pool: its shelves, its waiting threads, and its resources in use."""

from __future__ import annotations

import logging
import math
import threading
import traceback
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from mppool.core.events import (
    BackendFailed,
    Closed,
    CloseReason,
    Declaration,
    IdleTooLong,
    Returned,
    TokenReplaced,
)
from mppool.core.statistics import BOUNDS, HISTOGRAMS, WORKER_COUNTERS
from mppool.recipe import Recipe, overrides
from mppool.worker.entry import AT_ONCE, LONG_CLOSE_S, Entry
from mppool.worker.identities import Identities
from mppool.worker.waiter import LocalWaiter

if TYPE_CHECKING:
    from mppool.options import PoolOptions
    from mppool.worker.bearer import Bearer
    from mppool.worker.holdings import Holdings
    from mppool.worker.member import Member

log = logging.getLogger("mppool")

_NO_SHELF: deque[Entry] = deque()
"""Of a key of which there is nothing. It stays empty: resources append to the shelves that they know."""


def key_of(fingerprint: str, identity: str | None) -> str:
    """The key of a resource: what is opened, and for whom. Only equal keys are interchangeable."""
    return fingerprint if identity is None else f"{fingerprint}\0{identity}"


def identity_of(key: str) -> str | None:
    """The identity part of a key."""
    return key.partition("\0")[2] or None


class Face:
    """One pool as one process sees it. It survives a fork: `renew` gives the child empty hands.

    The shelves and the queues of waiters are deques, whose single operations are atomic; they need no lock.
    `contended` and `attention` are guarded by the holdings' lock, and read without it: a
    release appends first and reads `attention` then; whoever sets it sweeps the shelf afterwards. So one
    of the two sees the other, and nothing is left lying while somebody waits (rule 6).
    """

    def __init__(
        self, member: Member, name: str, recipe: Recipe[Any], options: PoolOptions
    ) -> None:
        self.member = member
        self.name = name
        self.recipe = recipe
        self.options = options
        self.fingerprint = recipe.fingerprint()
        self.identities = Identities(self)
        self.default_key = self.identities.declared_key()
        self.declared_at = monotonic()
        self.on_checkout = recipe.on_checkout if overrides(recipe, "on_checkout") else None
        self.reset = recipe.reset if overrides(recipe, "reset") else None
        self.check = recipe.check if overrides(recipe, "check") else None
        # A resource idle for longer than this goes through `prepare` at its checkout.
        self.trust_s = math.inf
        if self.check is not None and options.check_idle_for is not None:
            self.trust_s = options.check_idle_for
        limits = [
            limit for limit in (options.max_lease_warn, options.max_lease_kill) if limit is not None
        ]
        self.watched = bool(limits)
        if len(limits) == 2 and limits[0] > limits[1]:
            log.warning(
                "pool %r: max_lease_warn=%g is later than max_lease_kill=%g: leases are killed without a "
                "warning before",
                name,
                *limits,
            )
        self.first_lease_limit_s = min(limits, default=math.inf)
        if (
            self.on_checkout is not None
            or options.track_leaks
            or self.watched
            or recipe.credential is not None  # its token has to be looked at
        ):
            self.trust_s = -1.0
        # Whether a release is nothing but an append.
        self.plain = self.reset is None and options.max_uses is None and not self.watched
        self.renew(member.holdings)

    def renew(self, holdings: Holdings) -> None:
        """Start with nothing: at the declaration, and in a forked child."""
        self.holdings = holdings
        self.shelves: dict[str, deque[Entry]] = {}
        self.waiters: dict[str, deque[LocalWaiter]] = {}
        self.contended = False
        self.attention = False
        self.closed = False
        self._retired: dict[str | None, int] = {}
        self.counters: Counter[str] = Counter(dict.fromkeys(WORKER_COUNTERS, 0))
        self.histograms = {name: [0] * (len(BOUNDS) + 1) for name in HISTOGRAMS}
        self.past_uses = 0
        # Whether a background check is going on or about to, and of which resource.
        self.checking = False
        self.borrowed: Entry | None = None
        self.identities.renew()
        self.pop: Callable[[], Entry] = self.own_popper()

    def key_for(self, identity: str | None) -> str:
        """The key of what this pool opens for an identity."""
        return key_of(self.fingerprint, identity)

    def shelf_of(self, key: str) -> deque[Entry]:
        """The shelf of a key; made for its first resource (setdefault is atomic)."""
        return self.shelves.setdefault(key, deque())

    def forget_shelf(self, key: str) -> None:
        """The sub-pool of an identity is empty: nothing is kept of it. Caller holds the holdings' lock.

        Resources append themselves to the shelf that they know, so it must be the last of them that is gone.
        """
        if key != self.default_key and not any(
            entry.key == key and entry.face is self for entry in self.holdings.table.values()
        ):
            self.shelves.pop(key, None)
            self.identities.forget_name(key)

    def own_popper(self) -> Callable[[], Entry]:
        """What a checkout that names nobody takes from at once; nothing, where only a token tells for whom."""
        known = self.identities.own_is_known
        return self._popper(self.shelf_of(self.default_key) if known else _NO_SHELF)

    def popper_of(self, key: str) -> Callable[[], Entry]:
        """Takes from the shelf of a key; while there is none it finds nothing."""
        return self._popper(self.shelves.get(key, _NO_SHELF))

    def _popper(self, shelf: deque[Entry]) -> Callable[[], Entry]:
        # Releases append on the right, so the oldest lie on the left.
        return shelf.pop if self.options.order == "lifo" else shelf.popleft

    def take(self, key: str) -> Entry | None:
        """A resource from the shelf of a key, or None."""
        try:
            return self.popper_of(key)()
        except IndexError:
            return None

    def declaration(self) -> Declaration:
        """This pool as the books are told of it."""
        return Declaration(
            self.name, self.options, monotonic() - self.declared_at, self.default_key
        )

    # --- checkout ----------------------------------------------------------------------------------------

    def prepare(self, entry: Entry, now: float, bearer: Bearer | None = None) -> bool:
        """Make a resource from the shelf ready for a caller; False if it had to be closed instead."""
        if now >= entry.retire_at:
            self.close(entry, entry.retire_reason)
            return False
        if entry.token and bearer is not None and time() >= entry.ask_at:
            if not self._goes_on(entry, bearer):
                return False
            now = monotonic()
        idle_for = self.options.check_idle_for
        if (
            self.check is not None
            and idle_for is not None
            and now - entry.released_at >= idle_for
            and not self.is_healthy(entry)
        ):
            return False
        self.lend(entry, now)
        return True

    def _goes_on(self, entry: Entry, bearer: Bearer) -> bool:
        """Whether the token of this session is still the one of its identity; else it is closed.

        What lies idle with the old token goes with it, in all processes; the caller opens with the new one.
        """
        try:
            if bearer.still_holds(entry):
                return True
        except BaseException:  # no token could be had: that says nothing about the session
            self.shelve_where_it_lay(entry)
            raise
        self.count("reopened")
        old = entry.token
        self.close(entry, "retired")
        self.member.tell(TokenReplaced(self.name, entry.key, old))
        self.drop_token(entry.key, old)
        return False

    def drop_token(self, key: str, token: str) -> None:
        """Close what lies idle for this key and was opened with the token of this digest."""
        for entry in self.take_idle(lambda entry: entry.token == token and entry.key == key):
            self.member.close_soon(entry, "retired")

    def lend(self, entry: Entry, now: float) -> None:
        """The resource goes to a caller: count it, and tell the hook."""
        entry.uses += 1
        entry.lent_at = now
        if self.watched:
            entry.warned = False
            entry.thread = threading.current_thread().name
            self.member.housekeeper.expects(now + self.first_lease_limit_s)
        if self.on_checkout is not None:
            try:
                self.run_hook("on_checkout", self.on_checkout, entry)
            except BaseException:  # interrupted: the caller gets no lease
                self.close(entry, "discarded")
                raise

    def is_healthy(self, entry: Entry) -> bool:
        """Run the check; a resource that fails it, or whose check raises, is closed.

        A check that raises is counted apart. One that raises ConnectionError says no, and more: the backend
        is gone, and with it everything as old, in all processes.
        """
        assert self.check is not None
        self.count("checks")
        entry.checked_at = monotonic()
        try:
            if self.check(entry.resource):
                return True
        except ConnectionError as error:
            log.warning("pool %r: a check found the backend gone: %s", self.name, error)
            self._backend_failed(entry)
        except Exception:
            self.count("check_errors")
            log.warning(
                "pool %r: a check raised; the resource is replaced", self.name, exc_info=True
            )
            self.close(entry, "discarded")
            return False
        except BaseException:  # interrupted: nobody knows in which state it is
            self.close(entry, "discarded")
            raise
        self.close(entry, "unhealthy")
        return False

    def _backend_failed(self, entry: Entry) -> None:
        """Here at once, so that the next checkout does not find the same out again; elsewhere by the books."""
        self.member.tell(BackendFailed(self.name, entry.key, entry.generation))
        for other in self.retire_older_than(entry.generation + 1, entry.key):
            self.member.close_soon(other, "retired")

    def run_hook(self, hook: str, call: Callable[[Any], Any], entry: Entry) -> bool:
        """Run a hook; False, logged and counted, if it raised."""
        try:
            call(entry.resource)
        except Exception as error:
            self.count("hook_errors")
            log.warning("pool %r: the hook %s raised", self.name, hook, exc_info=True)
            if hook == "reset" and isinstance(error, ConnectionError):
                self._backend_failed(entry)
            return False
        return True

    # --- release -----------------------------------------------------------------------------------------

    def throw_away(self, entry: Entry, now: float) -> None:
        """A lease was discarded."""
        held = now - entry.lent_at
        if not entry.holdings.forked and self._take_from_lease(entry):
            self.observe("use", held)
            self.close(entry, "discarded")
        elif entry.killed:
            log.warning("pool %r: a lease was discarded after it had been killed", self.name)

    def put_back_slowly(self, entry: Entry, now: float, *, suspect: bool = False) -> None:
        """A lease was released, and there is more to do than an append (see Lease.release).

        suspect: an exception ended its use, so whether it still works is checked before anybody gets it.
        """
        if entry.holdings.forked:
            return
        if self.watched and not self._take_from_lease(entry):
            log.warning("pool %r: a lease was released after it had been killed", self.name)
            return
        limit = self.options.max_uses
        if now >= entry.retire_at:
            self.close(entry, entry.retire_reason)
        elif limit is not None and entry.uses >= limit:
            self.close(entry, "worn_out")
        elif self.reset is not None and not self._was_reset(entry):
            self.close(entry, "discarded")
        elif not suspect or self.check is None or self.is_healthy(entry):
            entry.released_at = monotonic()
            self.shelve(entry)

    def _take_from_lease(self, entry: Entry) -> bool:
        """End the lease; False if it was killed before. Either this happens, or `kill`."""
        with entry.holdings.lock:
            entry.lent_at = 0.0
            return not entry.killed

    def kill(self, entry: Entry, lent_at: float) -> bool:
        """End the lease that began then; False if it was released before. The caller owns the resource then."""
        with entry.holdings.lock:
            if entry.lent_at != lent_at or entry.killed or entry.state != "open":
                return False
            entry.killed = True
            return True

    def _was_reset(self, entry: Entry) -> bool:
        assert self.reset is not None
        try:
            return self.run_hook("reset", self.reset, entry)
        except BaseException:  # interrupted: nobody knows in which state it is
            self.close(entry, "discarded")
            raise

    def shelve(self, entry: Entry) -> None:
        """Put a resource on its shelf, and look whether somebody wants it."""
        entry.shelf.append(entry)
        self.look_after_shelving(entry)

    def look_after_shelving(self, entry: Entry) -> None:
        """What was put on a shelf may be wanted elsewhere, or not be wanted at all any more.

        Both flags are set first by whoever sets them, and the shelf is swept afterwards: either he finds the
        resource there, or it is seen here.
        """
        if entry.retire_at == AT_ONCE:
            self.close_if_shelved(entry)
        if self.attention:
            self.attend(entry.key)

    def close_if_shelved(self, entry: Entry) -> None:
        """Close a resource that is not to be lent any more, unless somebody has taken it from its shelf."""
        try:
            entry.shelf.remove(entry)
        except ValueError:
            return
        self.member.close_soon(entry, entry.retire_reason)

    def attend(self, key: str) -> None:
        """Somebody waits, here or elsewhere: what lies on this shelf goes to him."""
        if self.contended:
            self.sweep(key, math.inf, 0.0)
            return
        shelf, queue = self.shelves.get(key, _NO_SHELF), self.waiters.get(key)
        while queue and any(waiter.is_open for waiter in list(queue)):
            try:
                entry = shelf.popleft()
            except IndexError:
                return
            if not self._give_to_oldest(queue, entry):
                self.shelve(entry)  # and look again: somebody else may wait by now
                return

    def _give_to_oldest(self, queue: deque[LocalWaiter], answer: Any) -> bool:
        # Waiters leave the queue by themselves: one that was taken out before it is given anything could be
        # forgotten, if this thread is interrupted between the two.
        return any(waiter.give(answer) for waiter in list(queue))

    def give_to(self, key: str, ticket: int, answer: Any) -> bool:
        """Give to the waiter with this ticket, else to the oldest of this key; False if nobody waits."""
        queue = self.waiters.get(key)
        if not queue:
            return False
        for waiter in list(queue):
            if waiter.ticket == ticket and waiter.give(answer):
                return True
        return self._give_to_oldest(queue, answer)

    def sweep(self, key: str, most: float, idle_for: float) -> int:
        """Bring back up to `most` idle resources of a key, those idle for longest first; how many."""
        shelf, brought = self.shelves.get(key, _NO_SHELF), 0
        while brought < most:
            entry = self._take_oldest(shelf, idle_for)
            if entry is None:
                break
            self.bring_back(entry)
            brought += 1
        return brought

    def _take_oldest(self, shelf: deque[Entry], idle_for: float) -> Entry | None:
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

    def borrow(self, wanted: Callable[[Entry], bool]) -> Entry | None:
        """Take one idle resource that is wanted, for a moment; None if there is none, or somebody waits."""
        for shelf in list(self.shelves.values()):
            for entry in list(shelf):
                if self.attention or self.closed:
                    return None
                if wanted(entry):
                    self.borrowed = entry
                    try:
                        shelf.remove(entry)
                    except ValueError:
                        self.borrowed = None
                        continue  # a checkout was quicker
                    return entry
        return None

    def shelve_where_it_lay(self, entry: Entry) -> None:
        """Put a resource back that was borrowed for a moment: the shelf is in the order of last uses."""
        before = sum(other.released_at < entry.released_at for other in list(entry.shelf))
        entry.shelf.insert(before, entry)
        self.look_after_shelving(entry)

    def bring_back(self, entry: Entry, event: Returned | IdleTooLong | None = None) -> None:
        """Lay a resource aside until the books say what becomes of it."""
        holdings = entry.holdings
        with holdings.lock:
            # Told first: should this thread be interrupted in here, the books' answer finds nothing in the
            # side table, and the entry is found by the audit.
            holdings.outbox.append(event or Returned(entry.number))
            entry.state = "returned"
            holdings.side[entry.number] = entry
        self.member.flush()

    # --- waiting -----------------------------------------------------------------------------------------

    def enqueue(self, waiter: LocalWaiter) -> None:
        """From now on releases look for this waiter."""
        with self.holdings.lock:
            self.waiters.setdefault(waiter.key, deque()).append(waiter)
            self.attention = True

    def dequeue(self, waiter: LocalWaiter) -> None:
        """The waiter has been answered or has given up."""
        with self.holdings.lock:
            queue = self.waiters.get(waiter.key)
            if queue is not None and waiter in queue:
                queue.remove(waiter)  # only here, under the lock
                if not queue:
                    del self.waiters[waiter.key]
            self._look_whether_attention()

    def _look_whether_attention(self) -> None:
        """Caller holds the holdings' lock."""
        self.attention = self.contended or any(self.waiters.values())

    def set_contended(self, contended: bool) -> None:
        """Whether every released resource is brought back."""
        with self.holdings.lock:
            self.contended = contended
            self._look_whether_attention()

    def all_waiters(self) -> list[LocalWaiter]:
        """Those who wait now."""
        with self.holdings.lock:
            return [waiter for queue in self.waiters.values() for waiter in queue]

    # --- the end of a resource ---------------------------------------------------------------------------

    def close(self, entry: Entry, reason: CloseReason) -> None:
        """Close a resource that the caller owns. Its slot is free when its close has returned."""
        if self.begin_close(entry):
            self.finish_close(entry, reason)

    def begin_close(self, entry: Entry) -> bool:
        """From now on nobody else closes it, or counts it as idle or in use. False if somebody does already."""
        with entry.holdings.lock:
            if entry.state == "closing" or entry.holdings.forked:
                return False  # a hook that closes its own resource; two threads that both want to
            entry.state = "closing"
            entry.warned = False
            entry.closing_at = monotonic()
        return True

    def finish_close(self, entry: Entry, reason: CloseReason) -> None:
        """Run the hook, and tell the books when it has returned."""
        self.member.housekeeper.expects(entry.closing_at + LONG_CLOSE_S)
        try:
            self.recipe.close(entry.resource)
        except Exception:
            self.count("hook_errors")
            log.warning("pool %r: closing a resource raised; it is gone", self.name, exc_info=True)
        except BaseException as error:
            # Perhaps it was not closed yet, and its frames keep it: it ends before its slot is free.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            if not entry.holdings.forked:
                self._forget(entry, reason)

    def _forget(self, entry: Entry, reason: CloseReason) -> None:
        holdings = entry.holdings
        entry.resource = None
        with holdings.lock:
            # Told first: what is interrupted in between stays in the table, where the audit finds it.
            holdings.outbox.append(Closed(entry.number, reason))
            holdings.side.pop(entry.number, None)
            if holdings.table.pop(entry.number, None) is not None:
                self.past_uses += entry.uses
            self.forget_shelf(entry.key)
        self.member.flush()

    def retire_older_than(self, generation: int, key: str | None) -> list[Entry]:
        """Let everything of an older generation end: what is idle is returned, to be closed by the caller.

        key: only resources of this key are meant; None: all.
        """
        with self.holdings.lock:
            self._retired[key] = generation
            for entry in self.holdings.table.values():
                meant = entry.face is self and key in (None, entry.key)
                if meant and (self.closed or entry.generation < generation):
                    entry.retire_at = AT_ONCE
                    entry.retire_reason = "retired"
        return self.take_idle(lambda entry: entry.retire_at == AT_ONCE)

    def entries(self) -> list[Entry]:
        """Everything that this process has of the pool."""
        with self.holdings.lock:
            return [entry for entry in self.holdings.table.values() if entry.face is self]

    def retire(self, entries: list[Entry]) -> None:
        """Let these end: those that lie idle soon, the others when they are released."""
        with self.holdings.lock:
            for entry in entries:
                entry.retire_reason = "retired"
                entry.retire_at = AT_ONCE
        for entry in self.take_idle(lambda entry: entry.retire_at == AT_ONCE):
            self.member.close_soon(entry, entry.retire_reason)

    def is_retired(self, key: str, generation: int) -> bool:
        """Whether what was granted in this generation must end. Caller holds the holdings' lock.

        A grant comes on another connection than the word that its generation is over.
        """
        newest = max(self._retired.get(None, 0), self._retired.get(key, 0))
        return self.closed or generation < newest

    def forget_retired(self) -> None:
        """Another server counts generations anew, and says at which it is. Caller holds the lock."""
        self._retired.clear()

    def take_idle(self, wanted: Callable[[Entry], bool]) -> list[Entry]:
        """Take from the shelves whatever is wanted; each is owned by the caller then."""
        taken = []
        for shelf in list(self.shelves.values()):
            for entry in list(shelf):
                if wanted(entry):
                    try:
                        shelf.remove(entry)
                    except ValueError:
                        continue  # a checkout was quicker
                    taken.append(entry)
        return taken

    # --- figures -----------------------------------------------------------------------------------------

    def count(self, counter: str) -> None:
        """Count something rare. (Checkouts are counted by their entry, which has one owner.)"""
        with self.holdings.lock:
            self.counters[counter] += 1

    def observe(self, histogram: str, seconds: float) -> None:
        """Enter a duration into a histogram.

        Two threads may lose one of two simultaneous observations; a lock here would cost more than the
        figure is worth.
        """
        self.histograms[histogram][bisect_left(BOUNDS, seconds)] += 1
