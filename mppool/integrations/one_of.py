"""A recipe for things that exist in a fixed number: test databases, ports, licences, devices."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from mppool.errors import ConfigurationError, OpenFailed
from mppool.recipe import Opening, Recipe

T = TypeVar("T")

_PATIENCE_S = 2.0
_POLL_S = 0.005


class OneOf(Recipe[T]):
    """Each resource is one of `items`, and no item is lent twice at a time, over all processes.

    items: what there is; each has a `str()` of its own. Use `max_size=len(items)` or less.
    directory: where the lock files lie, the same for all processes that share the items.

    The pool bounds how many are out; which ones is decided by a POSIX record lock per item. Such a lock
    belongs to a process and is not inherited over a fork, so the kernel gives an item back at the very
    moment in which its process dies.
    """

    def __init__(self, items: Sequence[T], directory: str | os.PathLike[str]) -> None:
        names = [str(item) for item in items]
        if not names or len(set(names)) != len(names):
            raise ConfigurationError(
                f"OneOf: {len(names)} items with {len(set(names))} different names; give at least one item, "
                "and items whose str() differ"
            )
        self._items = list(items)
        self._directory = Path(directory)
        self._forget_parents()

    def _forget_parents(self) -> None:
        # Guards `_held`, the open lock file of every item that this process has; taken for the few system
        # calls of one try. Record locks do not tell two threads of a process apart, this does.
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self._pid = os.getpid()

    def __reduce__(self) -> tuple[object, ...]:
        return (OneOf, (self._items, os.fspath(self._directory)))

    def open(self, opening: Opening) -> T:
        """Take a free item. Raises OpenFailed if there is none, which a cap of `len(items)` prevents."""
        if self._pid != os.getpid():
            self._forget_parents()
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            for item in self._items:
                if self._try(str(item)):
                    return item
            # A process that was killed has given its slot back. Its last lock goes in the same moment.
            if time.monotonic() >= deadline:
                raise OpenFailed(
                    f"none of the {len(self._items)} items is free; use max_size={len(self._items)} or less"
                )
            time.sleep(_POLL_S)

    def _try(self, name: str) -> bool:
        with self._lock:
            if name in self._held:
                return False
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._directory / hashlib.sha256(name.encode()).hexdigest()[:32]
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _lock(descriptor)
            except (BlockingIOError, PermissionError):
                os.close(descriptor)
                return False
            self._held[name] = descriptor
            return True

    def close(self, resource: T) -> None:
        """Give the item back."""
        with self._lock:
            descriptor = self._held.pop(str(resource), None)
            if descriptor is not None:
                os.close(descriptor)

    def describe(self, resource: T) -> str:
        """The item's name."""
        return str(resource)

    def fingerprint(self) -> str:
        """The items' names, hashed: they may be connection strings."""
        text = "\0".join(sorted(str(item) for item in self._items))
        return f"one-of:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _lock(descriptor: int) -> None:
    """BlockingIOError or PermissionError where another process has it."""
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "items cannot be shared between processes on Windows, which has no fcntl: run pytest without -n there"
        ) from error
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
