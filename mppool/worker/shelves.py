"""The shelves of a pool: where its idle resources lie, and how they are taken.

A shelf is a deque, whose single operations are atomic, so it needs no lock: the thread that has taken a
resource from its shelf owns it. Several threads may be after the same one: the quickest gets it, and for the others
`take_from_shelf` says that they have to look on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator

from mppool.worker.inventory import PoolEntry

NO_SHELF: deque[PoolEntry] = deque()
"""Of a key of which there is nothing. It stays empty: resources append to the shelves that they know."""


class Shelves:
    """By key. A shelf is made for the first resource of its key, and forgotten under the inventory's lock only."""

    def __init__(self, *, is_lifo: bool) -> None:
        self._is_lifo = is_lifo
        self.by_key: dict[str, deque[PoolEntry]] = {}

    def of(self, key: str) -> deque[PoolEntry]:
        """The shelf of a key; made for its first resource (setdefault is atomic)."""
        return self.by_key.setdefault(key, deque())

    def get(self, key: str) -> deque[PoolEntry]:
        """The shelf of a key, to look at."""
        return self.by_key.get(key, NO_SHELF)

    def forget(self, key: str) -> None:
        """Nothing of a key is left. Resources append themselves to the shelf that they know, so none may be left."""
        self.by_key.pop(key, None)

    def popper(self, key: str) -> Callable[[], PoolEntry]:
        """Takes from the shelf of a key; while there is none it finds nothing (IndexError)."""
        return self.popper_of(self.get(key))

    def popper_of(self, shelf: deque[PoolEntry]) -> Callable[[], PoolEntry]:
        """Takes from a shelf. Releases append on the right, so the oldest lie on the left."""
        return shelf.pop if self._is_lifo else shelf.popleft

    def take(self, key: str) -> PoolEntry | None:
        """A resource from the shelf of a key, or None."""
        shelf = self.by_key.get(key)
        if not shelf:
            return None
        try:
            return shelf.pop() if self._is_lifo else shelf.popleft()
        except IndexError:  # another thread was quicker
            return None

    def take_all(self, wanted: Callable[[PoolEntry], bool]) -> list[PoolEntry]:
        """Take whatever is wanted; each is owned by the caller then."""
        return list(self.one_by_one(wanted))

    def one_by_one(self, wanted: Callable[[PoolEntry], bool]) -> Iterator[PoolEntry]:
        """Take whatever is wanted, each when the iterator is asked for it."""
        for shelf in list(self.by_key.values()):
            for entry in list(shelf):
                if wanted(entry) and entry.take_from_shelf():
                    yield entry

    def all(self) -> list[PoolEntry]:
        """What lies there now."""
        return [entry for shelf in list(self.by_key.values()) for entry in list(shelf)]

    def with_any(self) -> list[deque[PoolEntry]]:
        """Of thousands of identities hardly any has something idle."""
        return [shelf for shelf in list(self.by_key.values()) if shelf]


def lay_where_it_lay(entry: PoolEntry) -> None:
    """Put a resource back that was borrowed for a moment: its shelf is in the order of last uses."""
    since = [other.released_at for other in list(entry.shelf)]
    entry.shelf.insert(bisect_left(since, entry.released_at), entry)
