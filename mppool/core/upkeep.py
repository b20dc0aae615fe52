"""What keeps a pool in shape although nobody waits: `min_size`, what is idle too long, what is stale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mppool.core import returns
from mppool.core.decisions import NOBODY, PoolChanged, Readiness
from mppool.core.events import BackendFailed, Held
from mppool.core.slot import Slot
from mppool.ids import ProcessId

if TYPE_CHECKING:
    from mppool.core.pool import PoolBooks


MOST_STALE_KEYS = 1000
"""So many keys are remembered whose backends were found gone; with one more, the pool begins a generation."""


class Upkeep:
    """State beside that of `PoolBooks`.

    key: of the recipe's own identity; `min_size` belongs to it, and holds no other identity alive.
    wanted: whether anybody has ever wanted a resource; nothing is opened before.
    declarers: the processes that know how to open one, each with the key of its own recipe's identity.
    winner: the process whose declaration is in force; it may learn its own identity later.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.wanted = False
        self.declarers: dict[ProcessId, str] = {}
        self.winner: ProcessId | None = None
        # What is older is stale, by key; only where the pool's own generation does not say so already.
        self._stale_before: dict[str, int] = {}
        self._newest = 0  # of those

    def declare(self, process: ProcessId, key: str, *, newest: bool) -> None:
        """A process declares the pool, or has learned whom its own credential stands for."""
        self.declarers[process] = key
        if newest or self.winner in (None, process):
            self.winner, self.key = process, key

    def forget(self, process: ProcessId) -> None:
        """A process is gone. If nobody else can open for the key that it declared, another one's counts."""
        self.declarers.pop(process, None)
        if process == self.winner:
            self.winner = None
            if self.declarers and self.key not in self.declarers.values():
                self.winner = min(self.declarers)
                self.key = self.declarers[self.winner]

    def fill(self, books: PoolBooks, now: float) -> None:
        """Have resources opened until there are `min_size`, spread over the processes."""
        while self._lacking(books) > 0 and not books.closed and self.wanted:
            able = [
                process
                for process, key in self.declarers.items()
                # Another declaration opens something else under the same name (rule 11).
                if key == self.key and books.may_open(process, self.key, now)
            ]
            if not able:
                return
            poorest = min(able, key=lambda process: (books.slots.levels[process], process))
            books.grant(poorest, self.key, NOBODY, now)

    def next_deadline(self, books: PoolBooks, since: float) -> float:
        """When, after `since`, opening may be tried again for `min_size`; infinity if nothing is lacking."""
        breaker = books.breakers.get(self.key)
        if (
            breaker is None
            or breaker.retry_at <= since
            or not self.wanted
            or self._lacking(books) <= 0
        ):
            return math.inf
        return breaker.retry_at

    def idle_too_long(self, books: PoolBooks, slot: Slot, now: float) -> None:
        """A resource was brought back because it was idle for `max_idle`: it goes, but for `min_size`.

        Nor does it go while somebody asks for one of its identity (`eviction`).
        """
        surplus = slot.key != self.key or self._lacking(books) < 0
        if surplus and not books.eviction.is_asked_for(books, slot.key):
            books.close_slot(slot, "expired_idle", now)
        else:
            returns.answer(books, slot, now, idle_s=math.inf)

    def is_stale(self, books: PoolBooks, slot: Slot) -> bool:
        """Whether the slot was granted before the last reset, or before its backend was found gone."""
        return slot.generation < self.generation_of(books, slot.key)

    def backend_failed(self, books: PoolBooks, event: BackendFailed) -> None:
        """One process found the backend gone: whatever is as old is stale in all of them.

        Many find it at once; a detection by a resource that is stale already says nothing new.
        """
        if event.generation < self.generation_of(books, event.key):
            return
        self._begin(books, event.key, self.next_generation(books), hung=event.hung)

    def learn(self, books: PoolBooks, process: ProcessId, held: list[Held]) -> None:
        """An inventory may know of newer generations than the journal does: what is older is stale.

        And the process may not know yet which of what it holds went stale while it was not attached.
        """
        newest: dict[str, int] = {}
        for item in held:
            newest[item.key] = max(newest.get(item.key, 0), item.generation)
        for key, generation in newest.items():
            stale = self._stale_before.get(key, 0)
            if stale > books.generation:
                books.tell(process, PoolChanged(books.name, stale, books.closed, key))
            if generation > self.generation_of(books, key):
                self._begin(books, key, generation)

    def next_generation(self, books: PoolBooks) -> int:
        """Greater than any that was ever begun, for the pool or for one of its keys."""
        return max(books.generation, self._newest) + 1

    def begin_generation(self, books: PoolBooks) -> None:
        """Whatever was opened before is stale, whatever its key: no key need be remembered."""
        books.generation = self.next_generation(books)
        self._stale_before.clear()
        self._newest = 0
        books.announce()

    def _begin(self, books: PoolBooks, key: str, generation: int, *, hung: bool = False) -> None:
        self._stale_before[key] = generation
        self._newest = max(self._newest, generation)
        if len(self._stale_before) > MOST_STALE_KEYS:
            self.begin_generation(books)
            return
        changed = PoolChanged(books.name, generation, books.closed, key, hung)
        for process in self.declarers:
            books.tell(process, changed)

    def generation_of(self, books: PoolBooks, key: str) -> int:
        """The generation of what is opened for this key now; what is older is stale."""
        return max(books.generation, self._stale_before.get(key, 0))

    def readiness(self, books: PoolBooks) -> Readiness:
        """How much of `min_size` is open."""
        breaker = books.breakers.get(self.key)
        wanted = books.min_size if books.max_size is None else min(books.min_size, books.max_size)
        error = breaker.error if breaker else ""
        return Readiness(books.name, books.slots.open_for(self.key), wanted, error)

    def _lacking(self, books: PoolBooks) -> int:
        """How many resources are missing to `min_size`; below 0: how many more there are."""
        return books.min_size - books.slots.staying_for(self.key)
