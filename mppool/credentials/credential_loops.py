"""An asynchronous credential lives in the event loop that used it first: for every other loop there is a copy.

Its connections belong to that loop; in another one, or after its end (a second `asyncio.run`), they answer nothing.
The copy is closed with its loop. Classes that are not azure-identity's are used as they are.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any

from mppool.credentials.identity import azure_class_of
from mppool.credentials.loops import LoopEnd
from mppool.credentials.objects import copy_of


class _Place:
    """What is used in one loop. is_copy: it is ours to close."""

    __slots__ = ("end", "inner", "is_copy", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: Any, is_copy: bool) -> None:
        self.loop = weakref.ref(loop)
        self.inner = inner
        self.is_copy = is_copy
        self.end: LoopEnd | None = None

    def is_over(self) -> bool:
        """Whether the loop has ended."""
        loop = self.loop()
        return loop is None or loop.is_closed()


class CredentialLoops:
    """Which object stands for one credential in which loop.

    _placing: guards `_places`. Copying happens while it is held, nothing else that takes time.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """At the beginning, and in a forked child, where none of the loops runs."""
        self._placing = threading.Lock()
        self._places: list[_Place] = []
        self._is_taken = False

    def here(self, credential: Any) -> Any:
        """What stands for the credential in the running loop."""
        loop = asyncio.get_running_loop()
        for place in self._places:
            if place.loop() is loop:
                return place.inner
        if not azure_class_of(credential):
            return credential
        with self._placing:
            self._places = [place for place in self._places if not place.is_over()]
            # The first loop has the original, even after its end: the connections in it are that loop's.
            inner = copy_of(credential) if self._is_taken else credential
            self._is_taken = True
            place = _Place(loop, inner, inner is not credential)
            self._places = [*self._places, place]
        if place.is_copy:
            place.end = LoopEnd(lambda: self._ended(place))
        return inner

    def _ended(self, place: _Place) -> list[Any]:
        """The loop of this place is about to end; what is to be closed in it."""
        with self._placing:
            if place not in self._places:
                return []
            self._places = [other for other in self._places if other is not place]
        return [place]

    async def close_copies(self) -> None:
        """Close them, each in its loop; where that is another one, without waiting for it."""
        running = asyncio.get_running_loop()
        with self._placing:
            places, self._places = self._places, []
        for place in places:
            loop = place.loop()
            if not place.is_copy or loop is None or loop.is_closed():
                continue
            if loop is running:
                await place.inner.close()
            else:
                asyncio.run_coroutine_threadsafe(place.inner.close(), loop)
