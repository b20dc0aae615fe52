"""A token cache for the threads of this process alone: of a credential whose identity nobody knows, or where no
server can be had.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from time import monotonic
from typing import Any

from mppool.core.events import Abandoned, Event
from mppool.core.outbox import Outbox
from mppool.core.token_books import TokenBooks
from mppool.core.tokens import (
    TokenFailed,
    TokenFetched,
    TokensForgotten,
    TokenSpurned,
    WantToken,
    is_answer,
)
from mppool.ids import ProcessId, Ticket
from mppool.process.executor import BackgroundExecutor
from mppool.process.fork import call_in_children
from mppool.tokens.cache import TokenCache

_NAME = "tokens"
_SELF = ProcessId(0, 0)


_all: weakref.WeakSet[LocalTokenBooks] = weakref.WeakSet()
"""Those of this process. Guarded by `_listing`."""

_listing = threading.Lock()


def _renew() -> None:
    global _listing
    _listing = threading.Lock()


call_in_children(_renew)


def forget_all() -> None:
    """No token that only this process has is used any more."""
    with _listing:
        found = list(_all)
    for books in found:
        books.forget()


class LocalTokenBooks:
    """The same books as the server's, under a lock.

    _lock: guards `_books` and `_outbox`; nothing else happens while it is held.

    No thread looks at the clock: a waiting thread minds its own timeout, and the next one that asks takes over from a
    thread that hangs.
    """

    def __init__(self) -> None:
        with _listing:
            _all.add(self)
        self._tickets = itertools.count(1)
        self.cache = TokenCache(self, LocalTokenBooks)
        self._start(1)

    def _start(self, epoch: int) -> None:
        self._lock = threading.Lock()
        self._outbox = Outbox()
        self._outbox.attach(_SELF)
        self._books = TokenBooks(self._outbox, epoch)
        self._epoch = epoch
        self.chores = BackgroundExecutor(_NAME)

    def after_fork_in_child(self) -> None:
        """Copies of tokens stay; threads that fetch or wait do not exist here."""
        self.cache.forget_waiters()
        self._start(self._epoch + 1)

    def next_ticket(self) -> Ticket:
        """A ticket that was never used."""
        return Ticket(next(self._tickets))

    def call(self, event: Event, deadline: float | None) -> Any:
        """Tell the books; the answer to the ticket is returned."""
        assert isinstance(event, WantToken)
        with self._lock:
            now = monotonic()
            self._books.tick(now)
            self._books.want(_SELF, event, now)
            decisions = self._take_out()
        mine = [one for one in decisions if is_answer(one, event.ticket)]
        self._deliver([one for one in decisions if one not in mine])
        return mine[0]

    def attend(self) -> None:
        """See Home: nobody says anything."""

    def tell(self, event: Event) -> None:
        """Tell the books, without an answer."""
        with self._lock:
            now = monotonic()
            if isinstance(event, TokenFetched):
                self._books.fetched(_SELF, event, now)
            elif isinstance(event, TokenFailed):
                self._books.failed(_SELF, event, now)
            elif isinstance(event, TokenSpurned):
                self._books.spurned(event, now)
            elif isinstance(event, Abandoned):
                self._books.abandon(_SELF, event.ticket)
            decisions = self._take_out()
        self._deliver(decisions)

    def forget(self) -> None:
        """The tokens are not used any more."""
        with self._lock:
            self._books.forget(None, monotonic())
            decisions = self._take_out()
        self._deliver(decisions)

    def _take_out(self) -> list[Any]:
        """Caller holds `_lock`."""
        return [decision for _, decision in self._outbox.take_out()]

    def _deliver(self, decisions: list[Any]) -> None:
        for decision in decisions:
            if isinstance(decision, TokensForgotten):
                self.cache.forget(decision.identity, decision.fetch, decision.token)
            else:
                self.cache.answered(decision)
