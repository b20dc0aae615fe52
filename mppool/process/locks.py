"""Locks that are made when they are first used, and how an interrupted thread frees its own."""

from __future__ import annotations

import threading
from typing import Any, Protocol


class Releasable(Protocol):
    """A reentrant lock, or a condition that has one."""

    def release(self) -> None:
        """Raises RuntimeError if the calling thread does not own it."""


def release_own(*locks: Releasable) -> None:
    """Release those that the calling thread still owns.

    An interrupt can strike after the last instruction of a `with` block and before the release.
    """
    for lock in locks:
        while True:
            try:
                lock.release()
            except RuntimeError:  # not ours, or not any more
                break


class LazyLock:
    """An attribute that is a reentrant lock, made at its first use. `forget` has the next use make another.

    gevent patches threading in a worker that gunicorn has forked from a master which had loaded the
    application already. Locks from before the patch keep threads apart, but not greenlets. That is enough
    where no greenlet is switched to while the lock is held, that is, where nothing waits; for all
    other locks there is this.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"{name} (made late)"

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        made = instance.__dict__.get(self._key)
        return made or instance.__dict__.setdefault(self._key, threading.RLock())

    def forget(self, instance: Any) -> None:
        """It is not held any more, or the thread that held it does not exist in this process."""
        instance.__dict__.pop(self._key, None)
