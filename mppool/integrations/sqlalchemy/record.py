"""A connection, as SQLAlchemy sees it (Record) and as mppool keeps it (Held).

Who refers to whom, while it is lent:   fairy -> Record -> Lease -> (mppool's entry) -> Held -> DBAPI connection
and while it lies idle:                 (mppool's entry) -> Held -> Record -> DBAPI connection

So there is no cycle, and whatever loses a record in use, such as an exception between two lines of
SQLAlchemy's, lets go of its lease too: mppool closes what is behind it, and the slot is free again.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy.pool import Pool
from sqlalchemy.pool.base import _ConnectionRecord

from mppool.process.fork import call_in_children

if TYPE_CHECKING:
    from mppool.worker.lease import Lease

_records: weakref.WeakSet[_ConnectionRecord] = weakref.WeakSet()


class OurPool(Pool):
    """What a record and an opening must know of the pool class that is made of them (SharedPool).

    recipe: the EngineRecipe with which its connections are opened. identity: of its engine, see EngineRecipe.enter.
    secrets: what must not be in texts that travel. disposed_at: when its engine was disposed of.
    """

    name: ClassVar[str]
    recipe: Any
    identity: str | None
    secrets: list[str]
    disposed_at: float


class Held:
    """The resource of the pool.

    connection: the DBAPI connection; None where SQLAlchemy has closed it, or its user has detached it.
    record: while it lies idle; else the fairy has it.
    pool: the SQLAlchemy pool that had it last.
    owner: whose token it was opened with; None where there was none.
    """

    __slots__ = ("__weakref__", "connection", "owner", "pool", "record")

    def __init__(self, pool: OurPool) -> None:
        self.connection: Any = None
        self.record: Record | None = None
        self.pool = pool
        self.owner: str | None = None


class Record(_ConnectionRecord):
    """SQLAlchemy's record. `lease` is None while it lies idle."""

    lease: Lease[Held] | None

    def __init__(self, pool: OurPool, held: Held) -> None:
        super().__init__(pool, connect=False)
        self.held = held
        self.lease = None
        _records.add(self)

    def move_to(self, pool: OurPool) -> None:
        """From now on its events, its dialect and its return are those of this pool."""
        self._ConnectionRecord__pool = pool
        self.held.pool = pool


def inherited_safely(record: _ConnectionRecord) -> None:
    """A forked child does nothing with the connection of this record."""
    _records.add(record)


def _forget_parents_connections() -> None:
    """In a forked child: what the parent has in use stays the parent's.

    A fairy that the child inherits would roll back on its parent's session when the child closes or merely
    loses it. It becomes an invalidated one here: closing it does nothing, using it raises. What was
    connected stays referred to by Held, which mppool buries. (What lies idle is mppool's business too.)
    """
    for record in list(_records):
        reference = record.fairy_ref
        if reference is None:
            continue
        record.dbapi_connection = None
        fairy = reference()
        if fairy is not None:
            fairy.dbapi_connection = None  # type: ignore[assignment]  # as fairy.invalidate() does
    _records.clear()


call_in_children(_forget_parents_connections)
