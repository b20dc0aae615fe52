"""The streams of one pool in this process."""

from __future__ import annotations

import itertools
import os
import weakref
from typing import Any

from mppool.hosting.streams import Stream
from mppool.hosting.tending import Tender
from mppool.process.fork import renew_in_children

MOST_IDLE = 32
"""So many streams of one pool lie idle in a process; a thread in the host serves each."""


class Streams:
    """The streams of one pool in this process. A forked child starts with none.

    around: where its hosts are at home. tender: has those of a pool with `min_size` started again. _all: so that a child can close its copies. `_idle` and `_all` change by atomic
    operations.
    """

    def __init__(self, around: Any) -> None:
        self.around = around
        self._idle: list[Stream] = []
        self._all: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._hosts = itertools.count()
        self.tender = Tender()
        renew_in_children(self)

    def after_fork_in_child(self) -> None:
        """See Forkable."""
        for stream in list(self._all):
            stream.close_inherited()
        self.tender.forget()
        self._idle = []
        self._all = weakref.WeakSet()

    def next_host(self, hosts: int) -> int:
        """To which host the next stream leads: one after the other, from process to process at another one."""
        return (next(self._hosts) + os.getpid()) % hosts

    def take(self) -> Stream | None:
        """An idle one, the last that was used."""
        while True:
            try:
                stream = self._idle.pop()
            except IndexError:
                return None
            if not stream.is_closed:
                return stream

    def enter(self, stream: Stream) -> Stream:
        """A new one."""
        self._all.add(stream)
        return stream

    def put(self, stream: Stream) -> None:
        """Its lease has ended."""
        if stream.is_closed or not stream.mark[0]:
            return
        if len(self._idle) >= MOST_IDLE:
            stream.close()
        else:
            self._idle.append(stream)

    def leave(self) -> None:
        """This process wants nothing of its hosts for now: close all that have no lease, and start none again."""
        self.tender.forget()
        self.close_idle()

    def close_idle(self) -> None:
        """Close all that have no lease."""
        while (stream := self.take()) is not None:
            stream.close()
