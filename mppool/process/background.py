"""The one background thread of a member: it sleeps until something is due, or somebody wakes it.

With nothing to do it never wakes up. What it does is its `Work`.
"""

from __future__ import annotations

import math
import select
import threading
from collections.abc import Callable
from typing import Protocol

from mppool.logs import Log, handed_to
from mppool.process.locks import LazyLock, release_own
from mppool.process.wakeup import WakeUp

log = Log("mppool")


class Work(Protocol):
    """What the thread does."""

    def turn(self) -> None:
        """Do what there is to do, and sleep (`BackgroundThread.sleep`) where there is nothing."""

    def failed(self) -> None:
        """A turn has raised an exception, which is a bug, and is logged already. The thread goes on."""

    def ended(self) -> None:
        """The thread ends: something within it has raised what is not an Exception."""


class BackgroundThread:
    """The thread, and how to wake it.

    _starting: guards the start of the thread, and `_wake_up` and `_thread`. Nothing else happens while it is held.
    running: held by the thread for its life.
    has_ended: there was a thread, and there is none any more, which nothing but an exit within it can do; or none could
        be had. A single store, read without a lock.
    """

    _starting = LazyLock()

    def __init__(self, name: str, do_soon: Callable[[Callable[[], None]], None]) -> None:
        """name: of the manager. do_soon: another thread logs what this one has to say, for others wait for it."""
        self._name = name
        self._do_soon = do_soon
        self._work: Work | None = None
        self.running = threading.Lock()
        self._wake_up: WakeUp | None = None
        self._thread: threading.Thread | None = None
        self.has_ended = False

    def descriptors(self) -> list[int]:
        """What a forked child must close."""
        return [] if self._wake_up is None else self._wake_up.descriptors()

    def does(self, work: Work) -> None:
        """What it will do. Said once, before it is started."""
        self._work = work

    def ensure_running(self) -> None:
        """Start the thread if there is none; wake it in any case. RuntimeError where no thread can be had."""
        with self._starting:
            if self._thread is None or self.has_ended or not self._thread.is_alive():
                self._make_wake_up()
                self._thread = threading.Thread(
                    target=self._run, name=f"mppool-errands-{self._name}", daemon=True
                )
                self.has_ended = False
                try:
                    self._thread.start()
                except RuntimeError:
                    self.has_ended = True
                    raise
        self.wake()

    def prepare(self) -> None:
        """Have what the thread needs before it is needed. OSError where no descriptor is left."""
        with self._starting:
            self._make_wake_up()

    def _make_wake_up(self) -> None:
        """Caller holds `_starting`."""
        if self._wake_up is None:
            self._wake_up = WakeUp()

    def revive(self) -> None:
        """Start the thread again after it has ended. Where none can be had, the next caller tries again."""
        try:
            self.ensure_running()
        except RuntimeError as error:
            # From Python 3.12 on the end of the interpreter starts none, and nobody misses it.
            say = log.debug if "shutdown" in str(error) else log.warning
            say("manager %r: no background thread: %s", self._name, error)

    def interrupted(self) -> None:
        """The calling thread was interrupted somewhere in here, and has left."""
        release_own(self._starting)
        thread = self._thread
        if thread is not None and not (thread.is_alive() or self.running.locked()):
            self.has_ended = True  # it was interrupted while it started this thread

    def wake(self) -> None:
        """Have the thread look around. Safe in a finalizer."""
        wake_up = self._wake_up
        if wake_up is not None:
            wake_up.set()

    def sleep(self, seconds: float | None, descriptor: int = -1, events: int = 0) -> int:
        """Sleep for so long (None: no limit), until somebody wakes it, or until the descriptor is ready.

        Returns the events of the descriptor. Called by the thread itself.
        """
        assert self._wake_up is not None
        poller = select.poll()
        poller.register(self._wake_up.fd, select.POLLIN)
        if descriptor >= 0:
            poller.register(descriptor, events)
        ready = dict(poller.poll(None if seconds is None else math.ceil(seconds * 1000)))
        if self._wake_up.fd in ready:
            self._wake_up.clear()
        return ready.get(descriptor, 0)

    def _run(self) -> None:
        work = self._work
        assert work is not None
        if not self.running.acquire(blocking=False):
            return  # there is one; the thread that started this one was interrupted and did not know
        try:
            with handed_to(self._do_soon):
                while True:
                    self._guarded_turn(work)
        finally:
            work.ended()
            self.running.release()
            self.has_ended = True

    def _guarded_turn(self, work: Work) -> None:
        try:
            work.turn()
        except Exception:
            # A bug must not end the thread: others wait for what it brings.
            log.exception("manager %r: the background thread goes on after an error", self._name)
            work.failed()
