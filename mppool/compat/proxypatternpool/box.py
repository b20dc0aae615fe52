"""What the core pools here: a box with the object in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

from mppool.worker.lease import Lease


class Box:
    """An object of any kind: falsy, unhashable, the same one twice.

    While it is lent, somebody keeps the lease, and the end of the lease without a return is a leak:

    - `get` hands out the bare object, so the pool keeps the lease and, where the object allows it, only a
      weak reference to the object. When the object dies, it was dropped.
    - a proxy keeps the lease beside the object, in its thread's (or greenlet's) storage, and the pool only
      a weak reference to the lease. When the storage goes, the lease goes.
    """

    __slots__ = ("_keep_lease", "_lease", "_strong", "_weak", "last_get", "last_ret", "uses")

    def __init__(self, content: Any) -> None:
        self._strong = content
        self._weak: weakref.ref[Any] | None = None
        self._lease: Callable[[], Lease[Box] | None] | None = None
        self._keep_lease: Lease[Box] | None = None
        self.uses = 0
        self.last_get = self.last_ret = monotonic()

    @property
    def content(self) -> Any:
        """The object; None if it was dropped."""
        return self._strong if self._weak is None else self._weak()

    @property
    def was_dropped(self) -> bool:
        """Whether the object died while it was lent."""
        return self._weak is not None and self._weak() is None

    @property
    def lease(self) -> Lease[Box] | None:
        """The lease under which the object is lent; None if it is not, or the lease is gone."""
        return None if self._lease is None else self._lease()

    @property
    def is_lent(self) -> bool:
        """Whether somebody has the object."""
        return self._lease is not None

    def lend(self, lease: Lease[Box], content: Any, *, owner_keeps_lease: bool) -> None:
        """From now on somebody has the object, until `take_back` or a leak."""
        self._lease = weakref.ref(lease)
        if owner_keeps_lease:
            return
        self._keep_lease = lease
        try:
            weak = weakref.ref(content, lambda _: lease.abandon())
        except TypeError:
            return  # an int, a sqlite3.Connection: nothing tells when it is dropped
        self._weak = weak
        self._strong = None

    def take_back(self, content: Any) -> None:
        """The object is in the box again. The caller has the lease."""
        self._strong = content
        self._weak = self._lease = self._keep_lease = None
        self.last_ret = monotonic()
