"""A released lease stays with its worker while nobody waits: the next checkout there asks nobody.

The host resets the resource, begins the next lease of the stream in advance, and holds it for the worker. Who may have it
is decided by a *right*: a counter of the kernel that both have, and that one of them can read. The worker that reads it
has the lease. The host that reads it ends the lease, and gives the resource to somebody else. So nobody needs a round
trip to be sure.

    worker: release  ->  the right is there again; "released, and kept" is sent and not waited for
    worker: checkout ->  reads the right: it has the next lease of the stream
    host:   wanted   ->  reads the right: the worker asks at its next checkout

While anybody waits a flag in shared memory tells workers to keep nothing.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mppool.options import PoolOptions
    from mppool.recipe import Recipe

KEPT_S = 0.2
"""A lease that is kept and not used for so long ends: its resource lies idle in the host, and is looked after there."""


class Right:
    """The right to the next lease of a stream. It is there or not; `take` has it for one of the two ends."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int | None = None) -> None:
        """descriptor: of a right that the other end has made; None: a new one."""
        self._descriptor = -1
        self._descriptor = (
            os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if descriptor is None else descriptor
        )

    def fileno(self) -> int:
        """To be sent to the other end."""
        return self._descriptor

    def give(self) -> None:
        """Let either end have it."""
        os.eventfd_write(self._descriptor, 1)

    def take(self) -> bool:
        """Have it. False: it is not there, or the other end was faster."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """This end needs it no more."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


class Flag:
    """Whether anybody waits for a resource of a host. The host sets it; workers only read it."""

    __slots__ = ("_descriptor", "_memory")

    def __init__(self, descriptor: int | None = None) -> None:
        """descriptor: of a flag of a host, which is closed here, in any case; None: a new one."""
        if descriptor is None:
            descriptor = os.memfd_create("mppool-wanted", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, 1)
            self._memory = mmap.mmap(descriptor, 1)
            self._descriptor = descriptor
        else:
            try:
                self._memory = mmap.mmap(descriptor, 1, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
            self._descriptor = -1

    def fileno(self) -> int:
        """To be sent to workers."""
        return self._descriptor

    def is_set(self) -> bool:
        """Whether anybody waits."""
        return self._memory[0] != 0

    def set(self, waits: bool) -> None:
        """Tell all workers."""
        self._memory[0] = waits


def may_be_kept(recipe: Recipe[Any], options: PoolOptions) -> bool:
    """Whether leases of a pool may stay with workers: where a lease in advance is the same as one that is asked for.

    Not where tokens have to be looked at, leases are watched, a resource is checked at each checkout, or is not kept.
    """
    is_trusted = options.check_idle_for is None or options.check_idle_for >= KEPT_S
    is_watched = options.max_lease_warn is not None or options.max_lease_kill is not None
    return (
        recipe.credential is None
        and recipe.token_scope is None
        and options.keep
        and options.lanes is None
        and is_trusted
        and not is_watched
        and not options.track_leaks
        and options.wait_warn is None
    )


class Kept:
    """What a host keeps for its workers. Any thread may call; `_lock` guards `_waiting` and `_contended`.

    flag: tells workers that nothing is kept. call_in_all: ends every lease that is kept and not taken.
    """

    def __init__(self, *, call_in_all: Callable[[], None], call_in_one: Callable[[], None]) -> None:
        self.flag = Flag()
        self.call_in_one = call_in_one
        self._call_in_all = call_in_all
        self._lock = threading.Lock()
        self._waiting = 0
        self._contended = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block in which a thread of the host waits for a resource, or opens one."""
        self._change(1)
        try:
            # After the flag, so that what was kept before is found, and nothing more is kept.
            self._call_in_all()
            yield
        finally:
            self._change(-1)

    def contended(self, contended: bool) -> None:
        """Whether another process of the manager wants what this host has."""
        self._change(0, contended)
        if contended:
            self._call_in_all()

    def _change(self, by: int, contended: bool | None = None) -> None:
        with self._lock:
            self._waiting += by
            if contended is not None:
                self._contended = contended
            self.flag.set(self._waiting > 0 or self._contended)
