"""The books within this process: the same core, with no server."""

from __future__ import annotations

import random
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.core.books import Books
from mppool.core.decisions import (
    Addressed,
    Draining,
    Grant,
    Queued,
    Readiness,
)
from mppool.core.events import (
    Checkout,
    ClosePool,
    Drain,
    Event,
    Reset,
    Resize,
    ResizeBudget,
    WantReady,
)
from mppool.core.tokens import ForgetTokens, TokenQueued, WantToken, is_answer
from mppool.errors import PoolError
from mppool.ids import ProcessId, Session, Ticket, own_process
from mppool.link.connection import SessionLost
from mppool.link.troubles import pool_errors_only
from mppool.logs import handed_to, logged_afterwards
from mppool.process.fork import close_quietly, make_immortal, notice_fork
from mppool.process.greenlets import check_no_eventlet
from mppool.process.locks import release_own
from mppool.process.wakeup import PortableWakeUp, WakeUp, any_wake_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.link.protocol import Process
    from mppool.wire.messages import Report

# Not the application's generator: it may have seeded that one, and count on its numbers.
_chance = random.SystemRandom()

_FIRST_SESSION = Session(1)


class LocalLink:
    """Books of our own, under a lock.

    _lock: guards `_books`, `_own`, `_session`, `_whole`, the order of `_decided`, and the start and end of
        the background thread: `_thread`, `_wake_up`, `_running`. Its owner may take the inventory's
        lock, and nothing else happens while it is held. `wake` and `tidy` read without it.
    _delivering: held by the one thread that carries out decisions, so that they are carried out in order.
    _whole: False while the books are being changed, so that it stays False where that was interrupted.
    _suspect: set when a thread was interrupted between a decision and its carrying out, by that thread and
        without a lock (a single store); cleared under `_lock`. A thread that finds the books in either
        state writes them again, from what is really held: the cure for a server's death.
    _looking: held by the one thread that looks after what time brings.
    by_hand: the owner calls `look_around` now and then; there is no thread before a checkout has to wait.

    The locks are reentrant so that `interrupted` can free those that its thread still owns.
    """

    by_hand = False
    seen = b""

    def __init__(
        self, process: Process, merge: Callable[[dict[str, Any], Report, float], dict[str, Any]]
    ) -> None:
        self._process = process
        self.manager_name = process.name
        self.machine = ""
        self._merge = merge
        self._inherited: set[int] = set()
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._delivering = threading.RLock()
        self._looking = threading.RLock()
        self._decided: deque[tuple[Session, Any]] = deque()
        self._session = _FIRST_SESSION
        self._whole = True
        self._suspect = False
        self._running = threading.Lock()  # of the background thread, for its life
        self._books: Books | None = None
        self._own = ProcessId(0, 0)
        self._started_at = monotonic()
        self._thread: threading.Thread | None = None
        self._wake_up: WakeUp | PortableWakeUp | None = None

    def after_fork_in_child(self) -> None:
        """See Link."""
        if self._wake_up is not None:  # see ServerLink
            self._inherited |= set(self._wake_up.descriptors())
        make_immortal((self._lock, self._delivering, self._looking, self._thread, self._wake_up))
        self._start()
        close_quietly(self._inherited)

    def fingerprint_secret(self) -> bytes:
        """None is needed: no other process is told."""
        return b""

    # --- talking -----------------------------------------------------------------------------------------

    def call(self, event: Event, deadline: float | None) -> Any:
        """See Link."""
        self.flush()
        ticket = event.ticket if isinstance(event, (Checkout, WantToken)) else None
        try:
            with self._lock:
                books = self._ready_books()
                session = self._session
                self._whole = False
                decisions = books.apply(self._own, session, event, monotonic())
                answer = self._take_in(decisions, ticket)
                self._whole = True
            if isinstance(answer, Grant) and not self._process.register(answer, session):
                raise SessionLost("the books were written again")
        except SessionLost:
            raise
        except BaseException:
            self._suspect = True
            raise
        self._deliver()
        if isinstance(answer, (Queued, TokenQueued)):
            with self._lock:
                self._ensure_thread()
            self.wake()  # the books may want a tick earlier than the thread believes
        return answer

    def ask_at_once(self, event: Checkout) -> Any:
        """See Link. There is no server to be asked."""

    def _take_in(self, decisions: list[Addressed], ticket: Ticket | None) -> Any:
        """Queue decisions for delivery; the answer to a checkout is returned. Caller holds `_lock`."""
        answer = None
        for process, decision in decisions:
            if process is None:
                continue
            if ticket is not None and is_answer(decision, ticket):
                answer = decision
            else:
                self._decided.append((self._session, decision))
        return answer

    def _ready_books(self) -> Books:
        """Caller holds `_lock`."""
        if not self._whole or self._suspect:
            self._write_anew()
        if self._books is None:
            check_no_eventlet(self._process.name)
            self._own = own_process()
            self._begin(Books(1, jitter=_chance.random))
        if not self.by_hand:
            self._ensure_thread()
        assert self._books is not None
        return self._books

    def _ensure_thread(self) -> None:
        """Caller holds `_lock`."""
        if self._thread is None and self._books is not None:
            if self._wake_up is None:
                self._wake_up = any_wake_up()
            self._thread = threading.Thread(
                target=self._run, name=f"mppool-timers-{self._process.name}", daemon=True
            )
            self._thread.start()

    def _begin(self, books: Books) -> None:
        """A session with these books, which starts with an inventory. Caller holds `_lock`."""
        inventory = self._process.inventory
        self._process.seal()
        with inventory.lock:
            attach = self._process.attachment()
            inventory.begin(self._session)
        self._decided.clear()
        self._take_in(books.apply(self._own, self._session, attach, monotonic()), None)
        self._books = books

    def _write_anew(self) -> None:
        """The books cannot be trusted, or not all of their decisions arrived. Caller holds `_lock`."""
        before = self._books
        if before is None:
            self._whole, self._suspect = True, False
            return
        # Not later: what is suspected from now on is about the new books.
        self._whole, self._suspect = False, False
        books = before.successor(monotonic())
        self._session = Session(self._session + 1)
        self._begin(books)
        self._process.session_lost()
        self._whole = True  # last: where this is interrupted, the next one does it again

    def flush(self) -> None:
        """See Link."""
        inventory = self._process.inventory
        if not inventory.mark[0]:
            return
        outbox = inventory.outbox
        while outbox:
            with self._lock:
                books = self._ready_books()
                # Taken under the lock, so that two threads cannot swap the order of two events.
                self._whole = False
                if outbox:
                    event = outbox.popleft()
                    decisions = books.apply(self._own, self._session, event, monotonic())
                    self._take_in(decisions, None)
                self._whole = True
        self._deliver()

    @logged_afterwards
    def _deliver(self) -> None:
        delivering = self._delivering
        while self._decided:
            if not delivering.acquire(blocking=False):
                return  # the thread that delivers looks again
            try:
                self._deliver_all()
            finally:
                delivering.release()

    def _deliver_all(self) -> None:
        """Caller holds `_delivering`."""
        while True:
            try:
                session, decision = self._decided.popleft()
            except IndexError:
                return  # the books were written again
            except BaseException:
                self._suspect = True
                raise
            try:
                self._process.deliver(decision, session)
            except BaseException:
                self._suspect = True
                raise

    def wake(self) -> None:
        """See Link."""
        wake_up = self._wake_up
        if wake_up is not None:
            wake_up.set()

    @pool_errors_only
    def ensure_thread(self) -> None:
        """See Link."""
        notice_fork()
        with self._lock:
            self._ready_books()

    def tidy(self) -> None:
        """See Link."""
        if self._books is not None:
            self.flush()
            if not self._whole or self._suspect:
                with self._lock:
                    self._ready_books()
                self._deliver()

    def interrupted(self) -> None:
        """See Link."""
        release_own(self._lock, self._delivering, self._looking)
        thread = self._thread
        if thread is not None and not thread.is_alive():
            self._thread = None  # it was interrupted while it started this thread

    def attend(self) -> None:
        """See Link."""

    # --- commands ----------------------------------------------------------------------------------------

    @pool_errors_only
    def command(self, event: Event, deadline: float | None = None) -> Any:
        """See Link. It takes no time."""
        assert isinstance(
            event, (Resize, ResizeBudget, Reset, Drain, ClosePool, WantReady, ForgetTokens)
        )
        notice_fork()
        answer = None
        with self._lock:
            books = self._ready_books()
            self._whole = False
            try:
                decisions = books.command(self._own, event, monotonic())
            except KeyError:
                assert not isinstance(event, ForgetTokens)
                self._whole = True
                if isinstance(event, ResizeBudget):
                    what = f"budget {event.budget!r}"
                else:
                    what = f"pool {event.pool!r}"
                raise PoolError(f"manager {self._process.name!r} has no {what}") from None
            for _, decision in decisions:
                if isinstance(decision, (Draining, Readiness)):
                    answer = decision
            self._take_in([item for item in decisions if item[1] is not answer], None)
            self._whole = True
        self._deliver()
        return answer

    def detach(self, deadline: float) -> bool:
        """See Link."""
        self.stop()
        return True

    def is_stopped(self) -> bool:
        """See Link."""
        return False

    def forgive(self, pool: str) -> None:
        """Forget that openings failed: the next thread that wants a resource may try at once."""
        notice_fork()
        with self._lock:
            if self._books is not None:
                self._books.forgive(pool)

    @pool_errors_only
    def stats(self, *, survey: bool = False) -> dict[str, Any]:
        """See Link."""
        notice_fork()
        self.flush()
        with self._lock:
            books = self._ready_books()
            snapshot = books.snapshot()
            snapshot["tokens"] = books.tokens.snapshot(monotonic())
            snapshot["token_costs"] = books.tokens.costs_snapshot()
        return self._merge(snapshot, self._process.report(survey), monotonic() - self._started_at)

    # --- time --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Ticks when the books want one, and collects what leaked; sleeps otherwise."""
        if not self._running.acquire(blocking=False):
            return  # there is one; the thread that started this one was interrupted and did not know
        assert self._wake_up is not None
        wake_up = self._wake_up
        while True:
            with self._lock:
                if self._wake_up is not wake_up:
                    return  # stopped; what comes next has a thread of its own
                at = self._ready_books().next_deadline(monotonic())
            now = monotonic()
            left = self._process.seconds_left()
            limits = [
                limit for limit in (None if at is None else at - now, left) if limit is not None
            ]
            wake_up.wait(max(0.0, min(limits)) if limits else None)
            with handed_to(self._process.do_soon):  # the others wait for this thread
                self.look_around()

    def look_around(self) -> None:
        """Collect what leaked, do what is due, and tick. Does nothing where nothing was ever used."""
        notice_fork()
        with self._looking:
            self._process.look_around()
            with self._lock:
                if self._books is not None:
                    self._take_in(self._ready_books().tick(monotonic()), None)
        self._deliver()

    def stop(self) -> None:
        """End the thread, if nothing is held. The next use starts another one."""
        notice_fork()
        with self._lock:
            if self._process.inventory.table:
                return
            self.wake()
            self._books = self._thread = self._wake_up = None
            self._running = threading.Lock()
