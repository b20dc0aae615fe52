"""Who declares a pool, and what is in force of what was said: options, bounds, the recipe's own identity.

The bounds are declared by every process, and set from any of them while the pool runs. A bound that was set holds
until a declaration that was made after it changes that bound. A declaration that says of it what the one before said
changes nothing, so a worker that is born into a resized pool leaves it as it is, even if its declaration changes something else.
The next server is told both by the journal.

Instants are those of one machine's monotonic clock, which goes on where a server ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from mppool.core.decisions import RecordPool
from mppool.core.events import Declaration
from mppool.ids import ProcessId
from mppool.options import PoolOptions


class Bound:
    """One bound.

    value: in force, since `set_at`. declared: what the newest declaration said of it.
    """

    def __init__(self, declared: int | None, declared_at: float) -> None:
        self.value = self.declared = declared
        self.set_at = self.declared_at = declared_at

    def restore(
        self, value: int | None, declared: int | None, declared_at: float, set_at: float
    ) -> None:
        """Go on with what the last server wrote down."""
        self.value, self.declared = value, declared
        self.declared_at, self.set_at = declared_at, set_at

    def set(self, value: int | None, now: float) -> None:
        """Somebody has set it."""
        self.value, self.set_at = value, now

    def declare(self, value: int | None, made_at: float) -> bool:
        """Take in a declaration that was made then; True if it says something new."""
        if made_at <= self.declared_at:
            return False
        self.declared_at = made_at
        if value == self.declared:
            return False
        self.declared = value
        if made_at > self.set_at:
            self.value, self.set_at = value, made_at
        return True


class Bounds:
    """Both bounds of a pool. Owned by its `Declarations`."""

    def __init__(self, options: PoolOptions, declared_at: float) -> None:
        self.max_size = Bound(options.max_size, declared_at)
        self.min_size = Bound(options.min_size, declared_at)

    def declare(self, options: PoolOptions, made_at: float) -> bool:
        """Take in a declaration; True if it says something new of a bound."""
        of_max = self.max_size.declare(options.max_size, made_at)
        of_min = self.min_size.declare(options.min_size, made_at)
        return of_max or of_min

    def record(self, pool: str, generation: int, *, closed: bool, closed_at: float) -> RecordPool:
        """What the next server must know."""
        most, least = self.max_size, self.min_size
        return RecordPool(
            pool,
            most.value,
            least.value or 0,
            generation,
            closed,
            (most.declared, least.declared or 0),
            most.declared_at,
            (most.set_at, least.set_at),
            closed_at,
        )

    def restore(self, record: RecordPool, declared_at: float) -> None:
        """Go on with what the last server wrote down.

        declared_at: of the declaration that the pool begins with, where the record does not say (it was
            written by an older release).
        """
        declared = record.declared or (record.max_size, record.min_size)
        since = record.declared_at if record.declared else declared_at
        values = (record.max_size, record.min_size)
        for place, bound in enumerate((self.max_size, self.min_size)):
            set_at = record.set_at[place] if record.declared else -math.inf
            bound.restore(values[place], declared[place], since, set_at)


class Declarations:
    """The declarations of one pool. Between processes the newest one wins.

    options: in force. declared_at: when their declaration was made.
    bounds: in force, whether they were declared or set.
    key: of the recipe's own identity; `min_size` belongs to it.
    """

    def __init__(self, declaration: Declaration, declared_at: float) -> None:
        self.options = declaration.options
        self.declared_at = declared_at
        self.bounds = Bounds(declaration.options, declared_at)
        self.key = declaration.key
        # The processes that know how to open a resource, each with the key of its own recipe's identity.
        self._declarers: dict[ProcessId, str] = {}
        # The process whose declaration is in force; it may learn its own identity later.
        self._winner: ProcessId | None = None

    def take(self, process: ProcessId, declaration: Declaration, made_at: float) -> bool:
        """A process declares the pool, or has learned whom its own credential stands for.

        What it says of options and bounds counts also where it can open nothing now, as before an event loop uses the pool.
        True if it says something new of a bound: what it says otherwise than the declaration before it, unless the
        bound was set later than it was made.
        """
        newest = made_at > self.declared_at
        if not declaration.closed:
            self._declarers[process] = declaration.key
            if newest or self._winner in (None, process):
                self._winner, self.key = process, declaration.key
        if newest:
            self.options, self.declared_at = declaration.options, made_at
        return self.bounds.declare(declaration.options, made_at)

    def forget(self, process: ProcessId) -> None:
        """A process is gone. If no other can open for the key that it declared, that of another one counts."""
        self._declarers.pop(process, None)
        if process == self._winner:
            self._winner = None
            if self._declarers and self.key not in self._declarers.values():
                self._winner = min(self._declarers)
                self.key = self._declarers[self._winner]

    def forget_all(self, processes: Iterable[ProcessId]) -> None:
        """See `forget`."""
        for process in processes:
            self.forget(process)

    def declarers(self) -> list[ProcessId]:
        """The processes that know how to open a resource."""
        return list(self._declarers)

    def declarers_of(self, key: str) -> list[ProcessId]:
        """Those of them whose recipe's own identity has this key."""
        return [process for process, its_key in self._declarers.items() if its_key == key]
