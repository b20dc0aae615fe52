"""Hooks that may take long, or hang, are kept away from the errand thread, and from each other."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mppool.worker.late import release_own

log = logging.getLogger("mppool")

IDLE_S = 0.5
"""A thread ends after so long without anything to do."""

MOST_THREADS = 64
"""So many chores may hang before others have to wait for them."""


class Chores:
    """A queue, and threads that exist while there is something in it.

    A chore never waits behind another one: a close that hangs must not keep the other slots. So there are
    as many threads as chores at one time, and mostly none.

    _lock: guards `_queue` together with the counts of threads; never held while a chore runs.
    _here: the queue of a thread that does its own chores (see `done_here`).
    """

    def __init__(self, name: str, *, idle_s: float = IDLE_S) -> None:
        """idle_s: a thread ends after so long without anything to do."""
        self._name = name
        self._idle_s = idle_s
        self._lock = threading.Condition()
        self._queue: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0
        self._here = threading.local()

    @contextmanager
    def done_here(self) -> Iterator[None]:
        """Chores that this thread adds within the block are done by this thread, when the block ends."""
        mine: deque[Callable[[], None]] = deque()
        self._here.queue = mine
        try:
            yield
        finally:
            del self._here.queue
            try:
                while mine:
                    self._do(mine.popleft())
            finally:
                while mine:  # interrupted: the others must be done all the same
                    self.add(mine.popleft())

    def add(self, chore: Callable[[], None]) -> None:
        """Have `chore` done soon, in another thread. Its exceptions are logged."""
        mine: deque[Callable[[], None]] | None = getattr(self._here, "queue", None)
        if mine is not None:
            mine.append(chore)
            return
        with self._lock:
            self._queue.append(chore)
            if self._idle >= len(self._queue) or self._threads >= MOST_THREADS:
                self._lock.notify()
                return
            self._threads += 1
        self._start_thread()

    def _start_thread(self) -> None:
        """Start a thread that is counted already."""
        try:
            threading.Thread(
                target=self._run, name=f"mppool-chores-{self._name}", daemon=True
            ).start()
        except RuntimeError:  # no more threads can be had now: whoever adds next tries again
            with self._lock:
                self._threads -= 1
            log.warning("manager %r: no thread can be started for a chore", self._name)

    def interrupted(self) -> None:
        """The calling thread was interrupted somewhere in here, and has left.

        It may have queued a chore, and not have started the thread for it.
        """
        release_own(self._lock)
        if self._queue:
            with self._lock:
                self._threads += 1
            self._start_thread()

    def _run(self) -> None:
        while (chore := self._next()) is not None:
            try:
                self._do(chore)
            except BaseException:  # also SystemExit: a hook ends nothing but itself
                log.exception("a chore of manager %r was ended", self._name)
            del chore  # it may be the last to refer to a resource

    def _do(self, chore: Callable[[], None]) -> None:
        try:
            chore()
        except Exception:
            log.exception("a chore of manager %r failed", self._name)

    def _next(self) -> Callable[[], None] | None:
        """The next chore; None: there is none, and this thread is not counted any more."""
        with self._lock:
            if not self._queue:
                self._idle += 1
                self._lock.wait_for(lambda: bool(self._queue), self._idle_s)
                self._idle -= 1
            if self._queue:
                return self._queue.popleft()
            self._threads -= 1
            return None
