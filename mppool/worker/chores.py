"""Hooks that may take long, or hang, are kept away from the errand thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger("mppool")

IDLE_S = 0.5
"""The thread ends after so long without anything to do."""


class Chores:
    """A queue, and a thread that exists while there is something in it.

    _lock: guards `_queue` together with `_running`; never held while a chore runs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Condition(threading.Lock())
        self._queue: deque[Callable[[], None]] = deque()
        self._running = False

    def add(self, chore: Callable[[], None]) -> None:
        """Have `chore` done soon, in another thread. Its exceptions are logged."""
        with self._lock:
            self._queue.append(chore)
            if self._running:
                self._lock.notify()
                return
            self._running = True
        thread = threading.Thread(target=self._run, name=f"mppool-chores-{self._name}", daemon=True)
        thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._lock.wait(IDLE_S)
                if not self._queue:
                    self._running = False
                    return
                chore = self._queue.popleft()
            try:
                chore()
            except Exception:
                log.exception("a chore of manager %r failed", self._name)
