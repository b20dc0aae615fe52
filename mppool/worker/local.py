"""The books within this process: the same core, with no server."""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.core.books import Books
from mppool.core.decisions import Addressed, Draining, Grant, Queued, Readiness, Refuse
from mppool.core.events import Attach, Checkout, ClosePool, Drain, Event, Reset, Resize, WantReady
from mppool.errors import PoolError
from mppool.ids import ProcessId, Session, own_process
from mppool.worker.calls import SessionLost
from mppool.worker.errands import WakeUp
from mppool.worker.fork import bury

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.wire.messages import Report
    from mppool.worker.member import Member

_SESSION = Session(1)


class LocalLink:
    """Books of our own, under a lock.

    _lock: guards `_books` and the order of `_decided`; nothing else happens while it is held.
    _delivering: held by the one thread that carries out decisions, so that they are carried out in order.
    """

    def __init__(
        self, member: Member, merge: Callable[[dict[str, Any], Report, float], dict[str, Any]]
    ) -> None:
        self._member = member
        self._merge = merge
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._delivering = threading.Lock()
        self._decided: deque[Any] = deque()
        self._books: Books | None = None
        self._process = ProcessId(0, 0)
        self._started_at = monotonic()
        self._thread: threading.Thread | None = None
        self._wake_up: WakeUp | None = None

    def after_fork_in_child(self) -> None:
        """See Link."""
        bury((self._lock, self._delivering, self._thread, self._wake_up))
        self._start()

    # --- talking -----------------------------------------------------------------------------------------

    def call(self, event: Event, deadline: float | None) -> Any:
        """See Link."""
        self.flush()
        answer = self._apply(event)
        if isinstance(answer, Grant) and not self._member.register(answer, _SESSION):
            raise SessionLost("the session ended")
        self._deliver()
        if isinstance(answer, Queued):
            self.wake()  # the books may want a tick earlier than the thread believes
        return answer

    def _apply(self, event: Event) -> Any:
        ticket = event.ticket if isinstance(event, Checkout) else None
        with self._lock:
            books = self._ready_books()
            return self._take_in(books.apply(self._process, _SESSION, event, monotonic()), ticket)

    def _take_in(self, decisions: list[Addressed], ticket: int | None) -> Any:
        """Queue decisions for delivery; the answer to a checkout is returned. Caller holds `_lock`."""
        answer = None
        for process, decision in decisions:
            if process is None:
                continue
            if isinstance(decision, (Grant, Queued, Refuse)) and decision.ticket == ticket:
                answer = decision
            else:
                self._decided.append(decision)
        return answer

    def _ready_books(self) -> Books:
        """Caller holds `_lock`."""
        if self._books is None:
            self._process = own_process()
            self._books = Books(1, jitter=random.random)
            self._member.holdings.session = _SESSION
            self._take_in(
                self._books.apply(
                    self._process,
                    _SESSION,
                    Attach("", self._member.declarations(), []),
                    monotonic(),
                ),
                None,
            )
            self._wake_up = WakeUp()
            self._thread = threading.Thread(
                target=self._run, name=f"mppool-timers-{self._member.name}", daemon=True
            )
            self._thread.start()
        return self._books

    def flush(self, deadline: float | None = None) -> None:
        """See Link."""
        outbox = self._member.holdings.outbox
        while outbox:
            with self._lock:
                # Taken under the lock, so that two threads cannot swap the order of two events.
                try:
                    event = outbox.popleft()
                except IndexError:
                    break
                books = self._ready_books()
                self._take_in(books.apply(self._process, _SESSION, event, monotonic()), None)
        self._deliver()

    def _deliver(self) -> None:
        while self._decided:
            if not self._delivering.acquire(blocking=False):
                return  # whoever delivers looks again
            try:
                while self._decided:
                    self._member.deliver(self._decided.popleft(), _SESSION)
            finally:
                self._delivering.release()

    def wake(self) -> None:
        """See Link."""
        wake_up = self._wake_up
        if wake_up is not None:
            wake_up.set()

    # --- commands ----------------------------------------------------------------------------------------

    def command(self, event: Event) -> Any:
        """See Link."""
        assert isinstance(event, (Resize, Reset, Drain, ClosePool, WantReady))
        answer = None
        with self._lock:
            books = self._ready_books()
            try:
                decisions = books.command(self._process, event, monotonic())
            except KeyError:
                raise PoolError(
                    f"manager {self._member.name!r} has no pool {event.pool!r}"
                ) from None
            for _, decision in decisions:
                if isinstance(decision, (Draining, Readiness)):
                    answer = decision
            self._take_in([item for item in decisions if item[1] is not answer], None)
        self._deliver()
        return answer

    def stats(self) -> dict[str, Any]:
        """See Link."""
        self.flush()
        with self._lock:
            snapshot = self._ready_books().snapshot()
        return self._merge(snapshot, self._member.report(0), monotonic() - self._started_at)

    # --- time --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Ticks when the books want one, and collects what leaked; sleeps otherwise."""
        import select

        assert self._wake_up is not None
        wake_up = self._wake_up
        poller = select.poll()
        poller.register(wake_up.fd, select.POLLIN)
        books = self._books
        while True:
            with self._lock:
                if self._books is not books or books is None:
                    return  # stopped; what comes next has a thread of its own
                at = books.next_deadline(monotonic())
            now = monotonic()
            left = self._member.housekeeper.seconds_left(now)
            limits = [
                limit for limit in (None if at is None else at - now, left) if limit is not None
            ]
            if poller.poll(max(0, math.ceil(min(limits) * 1000)) if limits else None):
                wake_up.clear()
            self._member.collect_leaked()
            self._member.housekeeper.run(monotonic())
            with self._lock:
                if self._books is books:
                    self._take_in(books.tick(monotonic()), None)
            self._deliver()

    def stop(self) -> None:
        """End the thread, if nothing is held. The next use starts afresh."""
        with self._lock:
            if self._member.holdings.table:
                return
            self._books = None
        self.wake()
