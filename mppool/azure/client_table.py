"""The clients that a pool has in one process, and how they come and go.

build()       one thread makes a client, the others that want the same wait for it
finalizers    of credentials and of transports only append to `notes`, and wake the background thread
take_notes()  forgets what a dead credential had, and finds what nobody can use any more
look()        the background thread: notes, idle clients, and a chore that closes
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from mppool.azure.counting import no_counters, no_histograms, observe
from mppool.azure.entries import Build, ClientEntry, Owner
from mppool.credentials.extra import needed_for
from mppool.credentials.loops import LOOP_OVER, LoopEnd
from mppool.errors import PoolError, StaleLease
from mppool.process.fork import notice_fork, own_mark
from mppool.worker.inventory import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from mppool.azure.keys import Asked
    from mppool.azure.transports import AsyncTransport, Transport, Wire
    from mppool.worker.member import Member

SWEEPS_PER_TTL = 10
"""Idle clients are looked for so often within their idle time, but never more than once a second."""

ABANDONED = "this client is closed: its pool is gone; keep the pool as long as its clients"


class Pool(Protocol):
    """Whose clients these are: see ClientPool."""

    name: str
    manager: Any
    transport_options: dict[str, Any]
    max_clients: int
    clients: Clients

    def effective_ttl(self) -> float:
        """Seconds. Raises ConfigurationError for a setting that is none."""

    def factory_of(self, asked: Asked) -> Callable[..., Any]:
        """What makes such a client."""


class Clients:
    """What a pool has in one process.

    entries: by key; those of them that were asked for lately also in `shortcuts`, by the address of the
        credential, with a reference that must still lead to that very object.
    lock: guards that these two change together, and `owners`, `wires`, `_builds`. Nothing that can block
        happens while it is held, and finalizers never take it. A hit reads without it.
    notes: what finalizers have seen; `closing`: wires that nobody can use.
    """

    def __init__(self, pool: Pool, member: Member) -> None:
        self.lock = threading.Lock()
        self.entries: dict[Hashable, ClientEntry] = {}
        self.shortcuts: dict[Hashable, tuple[Callable[[], Any], ClientEntry]] = {}
        self.owners: dict[int, Owner] = {}
        self.wires: set[Wire] = set()
        # Of the clients that share one: by target and event loop.
        self.transports: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
        self.notes: deque[Callable[[], None]] = deque()
        self.closing: deque[Wire] = deque()
        self.counters: dict[str, int] = no_counters()
        self.histograms = no_histograms()
        self.past_uses = 0
        self.loops: dict[int, LoopEnd] = {}
        self.ended = ""
        self._mark = own_mark()
        self.sweep_at = NEVER
        self._member = member
        self._builds: dict[Hashable, Build] = {}
        self._pool = weakref.ref(pool)
        self._ttl = 0.0
        self._gone = self._finalizer(pool, self._abandoned)

    @property
    def forked(self) -> bool:
        """Whether this belongs to the parent of this process."""
        return not self._mark[0]

    # --- making clients ----------------------------------------------------------------------------------

    def build(self, pool: Pool, asked: Asked) -> ClientEntry | None:
        """The entry, which this thread or another one makes. None: look again.

        Raises what the factory raises.
        """
        mine: Build | None = None
        try:
            with self.lock:
                entry = self.entries.get(asked.key)
                other = self._builds.get(asked.key)
                if entry is not None or self.ended:
                    return entry
                if other is None:
                    mine = Build()
                    self._builds[asked.key] = mine
            if mine is not None:
                return self._built(pool, asked)
        finally:
            if mine is not None:
                with self.lock:
                    self._builds.pop(asked.key, None)
                mine.done.set()
        assert other is not None
        if other.builder == threading.get_ident():
            raise PoolError(
                f"client pool {pool.name!r}: the factory asked the pool for the very client that it makes"
            )
        began = monotonic()
        other.waiting += 1
        other.done.wait()
        observe(self.histograms, "wait", monotonic() - began)
        return None

    def _built(self, pool: Pool, asked: Asked) -> ClientEntry | None:
        self._ttl = pool.effective_ttl()
        began = monotonic()
        try:
            transport = self._transport(asked, pool.transport_options)
            made = pool.factory_of(asked)(
                asked.target, credential=asked.for_client(pool.manager), transport=transport
            )
        except BaseException:
            self.count("open_failed")
            raise
        observe(self.histograms, "open", monotonic() - began)
        entry = ClientEntry(made, asked)
        if asked.loop is not None:
            self._tend_loops(asked.loop_serial)
        with self.lock:
            if self.ended:  # reset meanwhile
                return None
            if asked.temporary:
                return entry  # the client is the caller's alone
            self.entries[asked.key] = entry
            if asked.serial:
                self._owner(asked.serial, asked.credential).keys.add(asked.key)
            self._make_room(pool.max_clients)
            self.sweep_at = min(self.sweep_at, monotonic() + max(1.0, self._ttl))
        self._member.housekeeper.look_after(self)
        return entry

    def _transport(self, asked: Asked, options: dict[str, Any]) -> Transport | AsyncTransport:
        """A transport: of the client's own, or, for keys and signatures, of all clients of the target.

        Those put their authorization into each request, so they may share connections.
        """
        with needed_for("clients"):
            from mppool.azure import transports

        kind: type[Transport | AsyncTransport] = transports.Transport
        make = transports.opened
        if asked.asynchronous:
            kind, make = transports.AsyncTransport, transports.opened_later
        place = (asked.target, asked.loop_serial)
        is_shared = not asked.serial and asked.kept is None
        found = self.transports.get(place) if is_shared else None
        if found is None:
            found = kind(self, lambda: make(options), asked.reference(), asked.serial)
            if is_shared:
                self.transports[place] = found
        if asked.temporary:
            found.keeps = asked.credential
        return found

    def _make_room(self, most: int) -> None:
        """Let go of those that were not asked for in the longest time. Caller holds the lock."""
        over = len(self.entries) - most
        if over > 0:
            by_age = sorted(self.entries, key=lambda key: self.entries[key].used_at)
            self._remove(by_age[:over])
            self.count("expired_idle", over)

    def is_right_for(self, entry: ClientEntry, asked: Asked) -> bool:
        """Whether a client may be used with this object too, of which the signature is the same now."""
        if entry.live is None or asked.sas is None:
            return True
        with self.lock:
            return bool(entry.live.serves(asked.sas))

    def shorten(self, shortcut: Hashable, asked: Asked, entry: ClientEntry) -> None:
        """Have the next caller that asks the same way find the entry at once."""
        reference = asked.reference() or (lambda: asked.kept)
        with self.lock:
            if self.entries.get(asked.key) is entry:
                self.shortcuts[shortcut] = (reference, entry)

    def watch(self, transport: Any, wire: Wire, credential: Callable[[], Any] | None) -> None:
        """A transport has opened a wire, which is to be closed when the transport is garbage.

        credential: leads to the one whose end is the wire's too.
        """
        alive = credential() if credential is not None else None
        with self.lock:
            self.wires.add(wire)
            wire.ended = self.ended
            if alive is not None:
                self._owner(wire.serial, alive).wires.add(wire)
        self.count("opened")
        self._finalizer(transport, self._unused, wire)
        self._member.housekeeper.look_after(self)

    def _owner(self, serial: int, credential: Any) -> Owner:
        """Caller holds the lock."""
        owner = self.owners.get(serial)
        if owner is None:
            finalizer = self._finalizer(credential, self._credential_gone, serial)
            owner = self.owners[serial] = Owner(finalizer)
        return owner

    def successor(self) -> Clients:
        """In a forked child: what its pool has here. Raises StaleLease where the pool is gone."""
        notice_fork()
        pool = self._pool()
        if pool is None:
            raise StaleLease(ABANDONED)
        return pool.clients

    # --- finalizers, and what they lead to ---------------------------------------------------------------

    def _finalizer(self, thing: object, what: Callable[..., None], *arguments: Any) -> Any:
        made = weakref.finalize(thing, self._noted, what, *arguments)
        made.atexit = False
        return made

    def _noted(self, what: Callable[..., None], *arguments: Any) -> None:
        """Called by finalizers, at any instruction of any thread: no lock, no I/O (hazard 15)."""
        if not self.forked:
            self.notes.append(lambda: what(*arguments))
            self._member.wake()

    def take_notes(self) -> None:
        """Do what finalizers have left to do; nothing of it blocks."""
        while self.notes:
            try:
                note = self.notes.popleft()
            except IndexError:
                return  # another thread was faster
            note()

    def _unused(self, wire: Wire) -> None:
        self.closing.append(wire)

    def _credential_gone(self, serial: int) -> None:
        with self.lock:
            owner = self.owners.pop(serial, None)
            if owner is None:
                return
            self._remove(list(owner.keys))
        # At once, although somebody may hold them: none of their requests could be authenticated.
        self.closing.extend(owner.wires)
        self.count("evicted_identities")

    def _remove(self, keys: list[Hashable]) -> None:
        """Caller holds the lock."""
        for key in keys:
            entry = self.entries.pop(key, None)
            if entry is not None:
                self.past_uses += entry.uses
                owner = self.owners.get(entry.serial)
                if owner is not None:
                    owner.keys.discard(key)
                    self._let_go(entry.serial, owner)
        if keys:
            # Not one by one: a credential may have several. The next caller takes the longer way, once.
            self.shortcuts = {}

    def _let_go(self, serial: int, owner: Owner) -> None:
        """Caller holds the lock."""
        if not owner.keys and not owner.wires:
            owner.finalizer.detach()
            self.owners.pop(serial, None)

    def _abandoned(self) -> None:
        """The pool itself is gone: nobody asks any more, but its clients may be in use."""
        with self.lock:
            self._remove(list(self.entries))

    def close_unused(self) -> None:
        """Close what nobody can use any more. May take its time."""
        while self.closing:
            try:
                wire = self.closing.popleft()
            except IndexError:
                break  # another thread was faster
            with self.lock:
                known = self._forget(wire)
            if known:
                wire.close()
        self._wake_if_over()

    def _wake_if_over(self) -> None:
        """The last wire of a pool that is gone was closed: the background thread lets go of this, once it looks."""
        if self.is_over():
            self._member.wake()

    def _forget(self, wire: Wire) -> bool:
        """False if somebody else closes it. Caller holds the lock."""
        if wire not in self.wires:
            return False
        self.wires.discard(wire)
        owner = self.owners.get(wire.serial)
        if owner is not None:
            owner.wires.discard(wire)
            self._let_go(wire.serial, owner)
        self.count("closed")
        return True

    # --- event loops -------------------------------------------------------------------------------------

    def _tend_loops(self, serial: int) -> None:
        """Be told when the running loop ends; and see which others have ended without a word."""
        for passed in [one for one, end in list(self.loops.items()) if end.has_passed()]:
            for wire in self._loop_over(passed):
                wire.abandon()
        if serial not in self.loops:
            self.loops[serial] = LoopEnd(lambda: self._loop_over(serial))

    def _loop_over(self, serial: int) -> list[Wire]:
        """Forget the clients of an event loop; what they have open."""
        end = self.loops.pop(serial, None)
        loop = None if end is None else end.loop()
        with self.lock:
            self._remove([key for key, entry in self.entries.items() if entry.loop == serial])
            wires = [wire for wire in self.wires if wire.loop is not None and wire.loop() is loop]
            for wire in wires:
                wire.ended = wire.ended or LOOP_OVER
                self._forget(wire)
        self._wake_if_over()
        return wires

    # --- time --------------------------------------------------------------------------------------------

    def look(self, now: float) -> float:
        """Called by the background thread whenever it is awake. When it should look again."""
        self.take_notes()
        if now >= self.sweep_at:
            self.retire_idle(self._ttl, now)
            self.take_notes()
        if self.closing:
            self._member.chores.add(self.close_unused)
        return self.sweep_at

    def is_over(self) -> bool:
        """Whether there is nothing left to look after, and never will be."""
        over = bool(self.ended) or self._pool() is None
        return over and not (self.wires or self.notes or self.closing)

    def retire_idle(self, idle_ttl: float, now: float) -> int:
        """Forget the clients that nobody has asked for in so many seconds; how many.

        A caller that holds one goes on with it. Its connections are closed when nobody can use them any more.
        """
        with self.lock:
            idle = [key for key, entry in self.entries.items() if now - entry.used_at >= idle_ttl]
            self._remove(idle)
            self.sweep_at = NEVER
            if self.entries:
                oldest = min(entry.used_at for entry in self.entries.values())
                pause = max(1.0, self._ttl / SWEEPS_PER_TTL)
                self.sweep_at = max(oldest + self._ttl, now + pause)
        self.count("expired_idle", len(idle))
        return len(idle)

    def end(self, reason: str) -> None:
        """Close everything and forget it, also what somebody holds. The next use starts with another one."""
        with self.lock:
            self.ended = reason
            for wire in self.wires:
                wire.ended = reason
            self.closing.extend(self.wires)
            self._remove(list(self.entries))
            for owner in self.owners.values():
                owner.finalizer.detach()
            self.owners.clear()
            self.sweep_at = NEVER
        self._gone.detach()
        self.take_notes()
        self.close_unused()

    # --- figures -----------------------------------------------------------------------------------------

    def count(self, counter: str, number: int = 1) -> None:
        """One more; a figure, not an account: nothing depends on it."""
        self.counters[counter] += number

    def figures(self) -> tuple[list[ClientEntry], int, int, int]:
        """Entries; wires that are open; builds under way; threads that wait for those."""
        with self.lock:
            waiting = sum(build.waiting for build in self._builds.values())
            return list(self.entries.values()), len(self.wires), len(self._builds), waiting
