"""The state that all processes of a pool follow: its generation, which resources are stale, whether it is closed."""

from __future__ import annotations

import math

from mppool.core.decisions import PoolChanged
from mppool.core.events import BackendFailed, Held
from mppool.core.slot import Slot

MOST_STALE_KEYS = 1000
"""So many keys are remembered whose backends were found gone; with one more, the pool begins a generation."""


class Generations:
    """The generation of the pool, and of those of its keys that are further.

    current: a resource that was opened in an older one is stale, for every key.
    closed, closed_at: whether the pool hands out nothing any more, and since when.
    """

    def __init__(self, pool: str) -> None:
        self.current = 0
        self.closed = False
        self.closed_at = -math.inf
        self._pool = pool
        # The generation that began at a pace, until when what is older may go on, and why it began.
        self._paced = 0
        self._paced_until = -math.inf
        self._because = ""
        # What is older is stale, by key; only where `current` does not say so already.
        self._stale_before: dict[str, int] = {}
        self._newest = 0  # of those

    def restore(self, generation: int, closed: bool, closed_at: float) -> None:
        """Go on with what the journal says."""
        self.current, self.closed, self.closed_at = generation, closed, closed_at

    def of(self, key: str) -> int:
        """The generation of what is opened for this key now; what is older is stale."""
        return max(self.current, self._stale_before.get(key, 0))

    def retires(self, slot: Slot, now: float) -> bool:
        """Whether a resource goes when it is idle or released: the pool is closed, or it is stale.

        While a generation begins at a pace, its process lets each go in its time.
        """
        if self.closed:
            return True
        newest = self.of(slot.key)
        return slot.generation < newest and not (newest == self._paced and now < self._paced_until)

    def state(self, now: float = math.inf) -> PoolChanged:
        """What a process must know of the pool. Without the time: whatever is stale goes at once."""
        over = self._paced_until - now if self._paced == self.current else 0.0
        return PoolChanged(self._pool, self.current, self.closed, over=max(0.0, over))

    def was_said(self, because: str) -> bool:
        """Whether a generation began for this reason already; it has from now on."""
        if not because:
            return False
        before, self._because = self._because, because
        return before == because

    def begin(self, until: float = -math.inf) -> None:
        """Everything that was opened before is stale, for every key: no key need be remembered.

        until: what is stale goes by then, each at an instant of its own; -inf: at once.
        """
        self.current = self._next()
        self._paced, self._paced_until = self.current, until
        self._stale_before.clear()
        self._newest = 0

    def close(self, now: float) -> None:
        """The pool hands out nothing any more."""
        self.closed, self.closed_at = True, now

    def reopen(self, made_at: float) -> bool:
        """A declaration was made then, or (inf) a command says so. True if it opens a pool that was closed before."""
        if not self.closed or made_at <= self.closed_at:
            return False
        self.closed = False
        return True

    def backend_failed(self, event: BackendFailed) -> PoolChanged | None:
        """One process found the backend gone: everything that is as old is stale in all of them.

        Many find it at once. A detection by a resource that is stale already says nothing new: None. Where the
        answer names no key, a generation of the pool began.
        """
        if event.generation < self.of(event.key):
            return None
        return self._begin_key(event.key, self._next(), hung=event.hung)

    def unheard(self, held: list[Held]) -> list[PoolChanged]:
        """What went stale while the process with this inventory was not attached."""
        return [
            PoolChanged(self._pool, stale, self.closed, key)
            for key in dict.fromkeys(item.key for item in held)
            if (stale := self._stale_before.get(key, 0)) > self.current
        ]

    def learn(self, held: list[Held]) -> list[PoolChanged]:
        """An inventory may know of newer generations than the journal does: what is older is stale."""
        newest: dict[str, int] = {}
        for item in held:
            newest[item.key] = max(newest.get(item.key, 0), item.generation)
        return [
            self._begin_key(key, generation)
            for key, generation in newest.items()
            if generation > self.of(key)
        ]

    def _next(self) -> int:
        """Greater than any that was ever begun, for the pool or for one of its keys."""
        return max(self.current, self._newest) + 1

    def _begin_key(self, key: str, generation: int, *, hung: bool = False) -> PoolChanged:
        self._stale_before[key] = generation
        self._newest = max(self._newest, generation)
        if len(self._stale_before) > MOST_STALE_KEYS:
            self.begin()
            return self.state()
        return PoolChanged(self._pool, generation, self.closed, key, hung)
