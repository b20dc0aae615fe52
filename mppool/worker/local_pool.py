"""What this process has of one pool: its shelves, its waiting threads, and its resources in use."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from mppool.core.events import BackendFailed, Declaration, Declare, Kind, TokenReplaced
from mppool.errors import ConfigurationMismatch
from mppool.ids import identity_of, key_of, sealed_with
from mppool.logs import Log, logged_afterwards
from mppool.process.waiter import Retry
from mppool.recipe import Recipe
from mppool.stats.names import WORKER_COUNTERS
from mppool.stats.pins import Pins
from mppool.worker.callers import note_caller
from mppool.worker.checking import Checkers, is_healthy
from mppool.worker.durations import Durations
from mppool.worker.ending import close, close_soon, drop_token, retire_older_than
from mppool.worker.fence import Fence
from mppool.worker.holders import Holders
from mppool.worker.hooks import Hooks
from mppool.worker.idle import Idle
from mppool.worker.inventory import AT_ONCE, PoolEntry
from mppool.worker.principals import Principals
from mppool.worker.refusals import Refusals
from mppool.worker.shelves import NO_SHELF

if TYPE_CHECKING:
    from mppool.core.decisions import Grant
    from mppool.options import PoolOptions
    from mppool.recipe import Survey
    from mppool.worker.budget import DeclaredBudget
    from mppool.worker.context import Context, Keeper
    from mppool.worker.inventory import Inventory
    from mppool.worker.principal import Principal

log = Log("mppool")

_CLOSE_POLL_S = 0.002


class LocalPool:
    """One pool as one process sees it. It survives a fork: `renew` gives the child empty hands.

    idle: what lies idle, and who waits for it (rule 6). The queues of waiters change under the inventory's lock only;
    a giver goes through a copy without it, because a waiter decides by itself whether it still takes what it is given.
    The counters, `past_uses` and `retired` are guarded by that lock too.
    """

    def __init__(
        self,
        member: Context,
        name: str,
        recipe: Recipe[Any],
        options: PoolOptions,
        budget: DeclaredBudget | None = None,
    ) -> None:
        self.member = member
        self.budget = budget
        self.name = name
        self.recipe = recipe
        self.options = options
        self.plain_fingerprint = recipe.fingerprint()
        self.fingerprint = self.plain_fingerprint
        self.identities = Principals(self)
        self.default_key = self.identities.declared_key()
        self.declared_at = monotonic()
        # Tells this declaration from others of its name, also in children that have inherited it.
        self.mark = os.urandom(16).hex()
        self.hooks = hooks = Hooks(recipe, name, self.count)
        # A resource idle for longer than this goes through `prepare` at its checkout.
        self.trust_s = math.inf
        if hooks.check is not None and options.check_idle_for is not None:
            self.trust_s = options.check_idle_for
        limits = [
            limit for limit in (options.max_lease_warn, options.max_lease_kill) if limit is not None
        ]
        self.watched = bool(limits)
        # Whether it is noted which thread has what. A checkout with a label notes it in any case.
        self.notes_callers = self.watched or options.track_leaks or options.wait_warn is not None
        if len(limits) == 2 and limits[0] > limits[1]:
            log.warning(
                "pool %r: max_lease_warn=%g is later than max_lease_kill=%g: leases are killed without a "
                "warning before",
                name,
                *limits,
            )
        self.first_lease_limit_s = min(limits, default=math.inf)
        if (
            hooks.on_checkout is not None
            or self.notes_callers
            or recipe.credential is not None  # its token has to be looked at
        ):
            self.trust_s = -1.0
        # Whether a release is nothing but an append.
        self.plain = (
            hooks.reset is None and options.max_uses is None and options.keep and not self.watched
        )
        # What ties leases to their sessions, where workers have them from a host.
        self.pins: Pins | None = None
        # What wants to be looked at while something of the pool is open here, in children too.
        self.keepers: tuple[Keeper, ...] = ()
        self.renew(member.inventory)

    def renew(self, inventory: Inventory) -> None:
        """Start with nothing: at the declaration, and in a forked child.

        asks_plainly: a checkout that names nobody needs no look at a credential, and nothing has to be sealed first.
        ours: the mark, see fork.py. It is set last: a thread that finds it set uses all the rest.
        """
        self.inventory = inventory
        self.is_sealed = self.asks_plainly = False
        self.said_of_own_leases, self.refusals = (-math.inf, ""), Refusals()
        self.surveyed: Survey | None = None
        self.fence = Fence(self)
        self.holders = Holders(self.member, self.name, self.options)
        self.durations = Durations()
        self.idle = Idle(
            self.member,
            inventory,
            self.options,
            self.durations,
            self.plain,
            close_soon,
            self.identities.forget_name,
        )
        self.idle.own_key = self.default_key
        self.idle.exchanges = not (self.recipe.belongs_to_loop or self.recipe.open_in_caller)
        self.closed_here = self.closed_everywhere = self.warned_of_event_loop = False
        self.retired: dict[str | None, int] = {}
        self.counters: Counter[str] = Counter(dict.fromkeys(WORKER_COUNTERS, 0))
        self.past_uses = 0
        # Whether a background check is going on, or about to begin.
        self.checking = False
        self.checks_here = self.recipe.open_in_caller
        self.checkers = Checkers(self.name)
        self.identities.renew()
        self._find_poppers()
        self.ours = inventory.mark

    def key_for(self, identity: str | None) -> str:
        """The key of what this pool opens for an identity."""
        return key_of(self.fingerprint, identity)

    def seal(self, secret: bytes) -> None:
        """From now on what other processes are told of the fingerprint is a hash of it, keyed with this secret.

        Call it before the first resource is opened; it does no I/O, and may be called again. `fingerprint` is set
        last: a thread that finds it sealed finds the rest sealed.
        """
        sealed = sealed_with(secret, self.plain_fingerprint)
        if sealed != self.fingerprint:
            before = self.default_key
            self.own_key_is(key_of(sealed, identity_of(before)))
            self.fingerprint = sealed
            self.idle.shelves.forget(before)  # nothing was ever on it
        self.asks_plainly = self.recipe.credential is None and self.options.lanes is None
        self.is_sealed = True

    def own_key_is(self, key: str) -> None:
        """`min_size`, and checkouts that name nobody, belong to this key from now on."""
        self.default_key = self.idle.own_key = key
        self._find_poppers()

    def _find_poppers(self) -> None:
        """What a checkout that names nobody takes from at once. Where there are lanes it has to say for which."""
        popper = self.idle.own_popper(is_known=self.identities.own_is_known)
        self.pop_in_lane: Callable[[], PoolEntry] = popper
        self.pop: Callable[[], PoolEntry] = NO_SHELF.pop if self.idle.has_lanes else popper

    def shelf_of(self, key: str) -> deque[PoolEntry]:
        """The shelf of a key; made for its first resource."""
        return self.idle.shelves.of(key)

    def check_same(self, recipe: Recipe[Any], options: PoolOptions) -> None:
        """Raises ConfigurationMismatch if a second declaration in this process differs from the first."""
        twice = f"pool {self.name!r} is declared twice in this process"
        if self.recipe.belongs_to_loop != recipe.belongs_to_loop:
            raise ConfigurationMismatch(
                f"{twice}, with manager.pool for resources that block and with manager.apool for those of an event "
                "loop; use another name for one of them"
            )
        if self.options != options:
            differences = ", ".join(
                f"{option}={getattr(self.options, option)!r} and {getattr(options, option)!r}"
                for option in options.__struct_fields__
                if getattr(self.options, option) != getattr(options, option)
            )
            raise ConfigurationMismatch(
                f"{twice}, with {differences}; declare it once, or use another name"
            )
        if self.plain_fingerprint != recipe.fingerprint():
            raise ConfigurationMismatch(
                f"{twice}, with recipes that open different things; declare it once, or use another name"
            )
        if not self.identities.is_own(recipe.credential):
            raise ConfigurationMismatch(
                f"{twice}, with different credentials; give one of them to checkout(credential=...), or use "
                "another name"
            )

    def declaration(self) -> Declaration:
        """This pool as the books are told of it."""
        age = monotonic() - self.declared_at
        opens_none = self.closed_here or not self.recipe.fills()
        budget = None if self.budget is None else self.budget.declaration()
        kind: Kind = "loops" if self.recipe.belongs_to_loop else "threads"
        if self.closed_here:
            kind = ""
        return Declaration(self.name, self.options, age, self.default_key, opens_none, budget, kind)

    # --- what the inventory tells: see Home ------------------------------------------------------------------

    def granted(self, entry: PoolEntry, grant: Grant, now: float) -> None:
        """See Home."""
        # A grant comes on another connection than the word that its generation is over.
        newest = max(self.retired.get(None, 0), self.retired.get(grant.key, 0))
        if self.closed_here or self.closed_everywhere or grant.generation < newest:
            entry.retire_at = AT_ONCE
        # Not before it is in the table: as long as it is, the shelf is not forgotten.
        entry.shelf = self.idle.shelves.of(grant.key)
        self.idle.line.granted(grant, now)

    def opened(self, entry: PoolEntry, seconds: float, now: float) -> None:
        """See Home."""
        self.idle.line.opened(entry.key, entry.number, seconds, now)

    def closing(self, entry: PoolEntry) -> None:
        """See Home."""
        self.idle.line.ended(entry.key, entry.number)

    def gone(self, entry: PoolEntry) -> None:
        """See Home."""
        self.past_uses += entry.uses
        self.idle.line.ended(entry.key, entry.number)
        self.idle.forget(entry.key)

    def note_retired(self, generation: int, key: str | None) -> None:
        """What is granted in an older generation must end. key: None: of all keys. Caller holds the inventory's lock."""
        if key is None:  # which says it of all keys, so that what was said of each need not be kept
            for each in [each for each, newest in self.retired.items() if newest <= generation]:
                del self.retired[each]
        self.retired[key] = max(generation, self.retired.get(key, 0))

    def forget_retired(self) -> None:
        """Another server has its own count of generations, and tells us its number. Caller holds the inventory's lock."""
        self.retired.clear()

    # --- closed or not -----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether this process hands out nothing: it has closed the pool, or somebody has for everybody."""
        return self.closed_here or self.closed_everywhere

    def declare_again(self) -> None:
        """The pool is declared once more: where it was closed, that opens it.

        The books hear of it at the next attachment at the latest; a pool that may have been closed meanwhile is
        open again then.
        """
        attached = self.inventory.session is not None
        if attached and not self.closed:
            return
        self.declared_at = monotonic()
        self.closed_here = self.closed_everywhere = False
        if attached:
            self.member.tell(Declare(self.declaration()))

    def close_here(self) -> list[PoolEntry]:
        """Hand out nothing in this process any more; what it has of the pool."""
        self.closed_here = True
        if (
            self.member.is_sealed
        ):  # else nobody has heard of the pool yet; the next attachment says it all
            self.member.tell(Declare(self.declaration()))
        for waiter in self.idle.line.all_waiters():
            waiter.give(Retry)  # and find it closed
        return self.entries()

    def entries(self) -> list[PoolEntry]:
        """Everything that this process has of the pool."""
        with self.inventory.lock:
            return [entry for entry in self.inventory.table.values() if entry.local is self]

    def wait_for_closes(self, until: float) -> bool:
        """Wait until what is being closed has been; False if it has not by then."""
        self.member.chores.catch_up()
        while any(entry.state == "closing" for entry in self.entries()):
            if monotonic() >= until:
                return False
            threading.Event().wait(_CLOSE_POLL_S)
        return True

    # --- checkout ----------------------------------------------------------------------------------------

    @logged_afterwards
    def prepare(
        self,
        entry: PoolEntry,
        now: float,
        bearer: Principal | None = None,
        deadline: float | None = None,
    ) -> bool:
        """Make a resource from the shelf ready for a caller; False if it had to be closed instead.

        deadline: of the caller, for its check. Raises CheckoutTimeout where that outlasts it.
        """
        if now >= entry.retire_at:
            close(entry, entry.retire_reason)
            return False
        if entry.token and bearer is not None and time() >= entry.ask_at:
            if not self._goes_on(entry, bearer):
                return False
            now = monotonic()
        idle_for = self.options.check_idle_for
        if (
            self.hooks.check is not None
            and idle_for is not None
            and now - entry.released_at >= idle_for
            and not is_healthy(self, entry, deadline)
        ):
            return False
        self.lend(entry, now)
        return True

    def _goes_on(self, entry: PoolEntry, bearer: Principal) -> bool:
        """Whether the token of this session is still the one of its identity; else it is closed.

        What lies idle with the old token goes with it, in all processes; the caller opens with the new one.
        """
        try:
            if bearer.still_holds(entry):
                return True
        except BaseException:  # no token could be had: that says nothing about the session
            self.idle.put_where_it_lay(entry)
            raise
        self.count("reopened")
        old = entry.token
        close(entry, "retired")
        self.member.tell(TokenReplaced(self.name, entry.key, old))
        drop_token(self, entry.key, old)
        return False

    def lend(self, entry: PoolEntry, now: float) -> None:
        """The resource goes to a caller: count it, and tell the hook."""
        entry.uses += 1
        entry.lent_at = now
        if self.watched:
            entry.warned = False
            note_caller(entry)
            self.member.housekeeper.expects(now + self.first_lease_limit_s)
        on_checkout = self.hooks.on_checkout
        if on_checkout is not None:
            try:
                self.hooks.run("on_checkout", on_checkout, entry.resource)
            except BaseException:  # interrupted: the caller gets no lease
                close(entry, "discarded")
                raise

    def is_healthy(self, entry: PoolEntry) -> bool:
        """Run the check, which somebody other than a checkout wants; see `checking`."""
        return is_healthy(self, entry)

    def backend_failed(
        self, entry: PoolEntry, *, renewed: bool = False, hung: bool = False
    ) -> None:
        """What this resource was connected to is gone, and with it everything as old, in all processes.

        Here at once, so that the next checkout does not find the same out again; elsewhere by the books.
        renewed: what is in this one itself is replaced by its user, so it counts as newer.
        hung: it says nothing at all, so that closing what is as old may hang too.
        """
        generation = entry.generation
        if renewed:  # first, because the books' word comes back on another thread
            entry.generation = generation + 1
        self.member.tell(BackendFailed(self.name, entry.key, generation, hung))
        for other in retire_older_than(self, generation + 1, entry.key, hung=hung):
            close_soon(other, "retired")

    # --- release -----------------------------------------------------------------------------------------

    @logged_afterwards
    def throw_away(self, entry: PoolEntry, now: float) -> None:
        """A lease was discarded."""
        held = now - entry.lent_at
        if entry.inventory.mark[0] and entry.inventory.end_lease(entry):
            self.durations.used(held)
            close(entry, "discarded")
        elif entry.killed:
            log.warning("pool %r: a lease was discarded after it had been killed", self.name)

    @logged_afterwards
    def put_back_slowly(self, entry: PoolEntry, now: float, *, suspect: bool = False) -> None:
        """A lease was released, and there is more to do than an append (see Lease.release).

        suspect: an exception ended its use, so whether it still works is checked before anybody gets it.
        """
        if entry.inventory.inherited:
            return
        if self.watched and not entry.inventory.end_lease(entry):
            log.warning("pool %r: a lease was released after it had been killed", self.name)
            return
        limit = self.options.max_uses
        if now >= entry.retire_at:
            close(entry, entry.retire_reason)
        elif limit is not None and entry.uses >= limit:
            close(entry, "worn_out")
        elif self.hooks.reset is not None and not self.was_reset(entry):
            close(entry, "discarded")
        elif not suspect or self.hooks.check is None or self.is_healthy(entry):
            entry.released_at = monotonic()
            if self.options.keep:
                self.idle.put_back(entry)
            else:
                with self.member.chores.done_here():  # it is closed when the release returns
                    self.idle.put_back(entry)

    def was_reset(self, entry: PoolEntry) -> bool:
        """Run the hook; False: the resource cannot be given to anybody, and has to be closed."""
        assert self.hooks.reset is not None
        try:
            error = self.hooks.run("reset", self.hooks.reset, entry.resource)
        except BaseException:  # interrupted: nobody knows in which state it is
            close(entry, "discarded")
            raise
        if isinstance(error, ConnectionError):
            self.backend_failed(entry)
        return error is None

    # --- figures -----------------------------------------------------------------------------------------

    def count(self, counter: str, times: int = 1) -> None:
        """Count something rare. (Checkouts are counted by their entry, which has one owner.)"""
        with self.inventory.lock:
            self.counters[counter] += times
