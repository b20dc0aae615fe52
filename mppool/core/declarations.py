"""The bounds of a pool: declared by every process, and set from any of them while it runs.

A bound that was set holds until a declaration that was made after it changes that bound. A declaration that
says of it what the one before said changes nothing, so a worker that is born into a resized pool leaves it
as it is, whatever else its declaration says. The next server is told both by the journal.

Instants are those of one machine's monotonic clock, which goes on where a server ends.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mppool.core.decisions import RecordPool

if TYPE_CHECKING:
    from mppool.options import PoolOptions


class Bound:
    """One bound.

    value: in force, since `set_at`. declared: what the newest declaration said of it.
    """

    def __init__(self, declared: int | None, declared_at: float) -> None:
        self.value = self.declared = declared
        self.set_at = self.declared_at = declared_at

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
    """Both bounds of a pool. Owned by its `PoolBooks`."""

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
            bound.value, bound.declared = values[place], declared[place]
            bound.declared_at = since
            bound.set_at = record.set_at[place] if record.declared else -math.inf
