"""Hooks that may take long, or hang, are kept away from the errand thread, and from each other."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep

from mppool.logs import Log, afterwards
from mppool.process.fork import own_mark, thread_ends
from mppool.process.locks import release_own

log = Log("mppool")

IDLE_S = 0.5
"""A thread ends after so long without anything to do."""

MOST_THREADS = 64
"""So many chores are done at one time, not counting those that hang."""

HUNG_S = 0.25
"""A chore that takes longer hangs, as far as others are concerned: it holds up nobody but itself."""


_PAUSE_S = 0.00005


def let_others() -> None:
    """Threads that want to go on may: building a long report keeps the interpreter busy."""
    sleep(_PAUSE_S)


class BackgroundExecutor:
    """A queue, and threads that exist while there is something in it, and for a moment longer.

    A chore hardly ever waits behind another one: a close that hangs must not keep the other slots. So there are
    as many threads as chores at one time, and mostly none. Only what is in progress is limited, and a chore
    that hangs makes no progress: its thread is not counted any more.

    _queue: chores that no thread has taken yet. _parked: of each thread that has nothing to do, the lock on which it
        sleeps: the one that parked last is woken first. Both change by atomic operations alone. Who adds a chore appends
        it first and looks for a parked thread then; a thread parks first and looks at the queue then. So no chore lies
        beside a sleeping thread.
    _lock: guards `_threads`; never held while a chore runs.
    _begun: since when each thread is busy with its chore, by thread (atomic operations).
    _here: the queue of a thread that does its own chores (see `done_here`).
    """

    def __init__(
        self,
        name: str,
        *,
        idle_s: float = IDLE_S,
        most: int = MOST_THREADS,
        expects: Callable[[float], None] | None = None,
    ) -> None:
        """idle_s: a thread ends after so long without anything to do. most: so many chores are done at one time.

        expects: told when `look` is wanted. None: nobody looks, and chores that hang are counted.
        """
        self._name = name
        self._expects = expects
        self._begun: dict[int, float] = {}
        self._idle_s = idle_s
        self._most = most
        self._lock = threading.RLock()
        self._queue: deque[Callable[[], None]] = deque()
        self._parked: deque[threading.Lock] = deque()
        self._threads = 0
        self._here = threading.local()
        self._mark = own_mark()

    @contextmanager
    def done_here(self) -> Iterator[None]:
        """Chores that this thread adds within the block are done by this thread, when the block ends."""
        mine: deque[Callable[[], None]] = deque()
        outer = getattr(self._here, "queue", None)
        self._here.queue = mine
        try:
            yield
        finally:
            self._here.queue = outer
            try:
                while mine:
                    self._do(mine.popleft())
            finally:
                while mine:  # interrupted: the others must be done all the same
                    self.add(mine.popleft())

    def catch_up(self) -> None:
        """Do what this thread has added within `done_here` so far: it is going to wait for that."""
        mine: deque[Callable[[], None]] | None = getattr(self._here, "queue", None)
        while mine:
            self._do(mine.popleft())

    def add(self, chore: Callable[[], None]) -> None:
        """Have `chore` done soon, in another thread. Its exceptions are logged."""
        mine: deque[Callable[[], None]] | None = getattr(self._here, "queue", None)
        if mine is not None:
            mine.append(chore)
            return
        self._queue.append(chore)
        if self._wake_one():
            return
        with self._lock:
            full = self._room(monotonic()) <= 0
            self._threads += not full
        if full:
            self._want_look()
        else:
            self._start_thread()

    def add_in_finalizer(self, chore: Callable[[], None]) -> None:
        """The same, where no lock may be taken: if no thread is here, the background thread starts one."""
        self._queue.append(chore)
        if not self._wake_one() and self._expects is not None:
            self._expects(monotonic())

    def _wake_one(self) -> bool:
        """Have a thread that has nothing to do look at the queue; False if there is none. Safe in a finalizer."""
        try:
            self._parked.pop().release()
        except IndexError:
            return False
        return True

    def _room(self, now: float) -> int:
        """How many more threads may be started. Caller holds `_lock`."""
        hung = 0
        if self._expects is not None:
            hung = sum(now - begun >= HUNG_S for begun in list(self._begun.values()))
        return self._most + hung - self._threads

    def _want_look(self) -> None:
        if self._expects is not None:
            self._expects(monotonic() + HUNG_S)

    def look(self, now: float) -> float:
        """Start threads for what waits behind chores that hang, or for which none could be had.

        When to look again; infinity: no need. Called by the background thread.
        """
        if not self._queue:
            return math.inf
        with self._lock:
            wanted = min(self._room(now), len(self._queue) - len(self._parked))
            self._threads += max(0, wanted)
        for started in range(wanted):
            if not self._start_thread():
                with self._lock:
                    self._threads -= wanted - started - 1
                break
        return now + HUNG_S

    def _start_thread(self) -> bool:
        """Start a thread that is counted already. False, and not counted any more, where none can be had."""
        try:
            threading.Thread(
                target=self._run, name=f"mppool-chores-{self._name}", daemon=True
            ).start()
        except RuntimeError:  # no more threads can be had now: it is tried again soon
            with self._lock:
                self._threads -= 1
            self._want_look()
            log.warning("manager %r: no thread can be started for a chore", self._name)
            return False
        return True

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
        ident = threading.get_ident()
        while (chore := self._next()) is not None:
            self._begun[ident] = monotonic()
            try:
                with afterwards():
                    self._do(chore)
            except BaseException:  # also SystemExit: a hook ends nothing but itself
                log.exception("a chore of manager %r was ended", self._name)
            finally:
                self._begun.pop(ident, None)
            del chore  # it may be the last to refer to a resource
        thread_ends()

    def _do(self, chore: Callable[[], None]) -> None:
        try:
            chore()
        except Exception:
            log.exception("a chore of manager %r failed", self._name)

    def _next(self) -> Callable[[], None] | None:
        """The next chore; None: there is none, and this thread is not counted any more."""
        while self._mark[0]:  # the only thread of a child that a chore has forked ends
            try:
                return self._queue.popleft()
            except IndexError:
                pass  # not handled here: a chore may take its time
            gate = threading.Lock()  # another one each time: who has taken it may open it late
            gate.acquire()
            self._parked.append(gate)
            if self._queue:
                self._unpark(gate)
            elif not gate.acquire(timeout=self._idle_s) and self._unpark(gate) and self._ends():
                return None
        return None

    def _unpark(self, gate: threading.Lock) -> bool:
        """Sleep no longer. False: somebody has taken the lock already, to wake this thread."""
        try:
            self._parked.remove(gate)
        except ValueError:
            return False
        return True

    def _ends(self) -> bool:
        """This thread is not counted any more, unless there is something to do."""
        with self._lock:
            if self._queue:
                return False
            self._threads -= 1
            return True
