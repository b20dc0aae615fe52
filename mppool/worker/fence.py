"""The lease as a fence: sessions of a machine whose lease has run out are ended at the database.

That machine was suspended, or is cut off: it should have closed them, and others may open as many now. The server says of
which machine; it is done over a connection of the pool's own, one that lies idle, or the next one that is opened, before it
is lent. Asked for by `PoolManager(..., end_expired=True)`, and known to recipes that override `end_sessions`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from mppool.logs import Log
from mppool.recipe import overrides
from mppool.wire.messages import EndSessions

if TYPE_CHECKING:
    from mppool.worker.own_pool import OwnPool

log = Log("mppool")


class _Expired(NamedTuple):
    """machine: for people. labels: how those of its sessions begin. at: when its lease ran out, by this process's clock."""

    machine: str
    labels: list[str]
    at: float


class Fence:
    """What one pool has to end at its database. Its state is one queue: both ends are atomic, so it needs no lock."""

    def __init__(self, local: OwnPool) -> None:
        self._local = local
        self._waiting: deque[_Expired] = deque()

    def want(self, said: EndSessions) -> None:
        """This is to be ended, on a resource that lies idle, or on the next one that is opened."""
        local = self._local
        if local.recipe.open_in_caller or not overrides(local.recipe, "end_sessions"):
            return
        pool = f"{local.member.name}/{local.name}"
        labels = [f"{pool}/{said.machine}.{epoch}/" for epoch in said.epochs]
        self._waiting.append(_Expired(said.machine, labels, monotonic() - said.age))

    def on_idle(self) -> None:
        """Do it on a resource that lies idle, if there is one. Not for the thread that reads errands: it takes its time."""
        if not self._waiting:
            return
        idle = self._local.idle
        for entry in idle.borrow(lambda entry: entry.retire_at > monotonic()):
            self.on(entry.resource)
            idle.put_where_it_lay(entry)
            break

    def on(self, resource: Any) -> None:
        """Do it on this one, which nobody else uses."""
        while self._waiting:
            try:
                expired = self._waiting.popleft()
            except IndexError:
                return  # another thread was quicker
            age = monotonic() - expired.at
            ended = self._local.hooks.end_sessions(resource, expired.labels, age)
            if ended:
                log.warning(
                    "pool %r: %d sessions of machine %r were ended at the database: its lease had run out",
                    self._local.name,
                    ended,
                    expired.machine,
                )


def end_sessions(pools: Iterable[OwnPool], said: EndSessions) -> None:
    """The server says that a machine's lease has run out. Called in the thread that reads errands."""
    for local in pools:
        local.fence.want(said)
        local.member.chores.add(local.fence.on_idle)
