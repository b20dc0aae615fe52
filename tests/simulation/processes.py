"""Simulated processes: their threads, their descriptors, and how they end."""

from __future__ import annotations

import errno
import os as real_os
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tests.simulation.files import OpenFile
from tests.simulation.scheduler import SimThread, current_thread

if TYPE_CHECKING:
    from tests.simulation.kernel import Kernel

LOWEST_DESCRIPTOR = 3
TICKS_PER_S = 100


class Description(Protocol):
    """What a descriptor leads to."""

    references: int

    def close(self, process: Process) -> None:
        """The last descriptor of it was closed."""


class Process:
    """One simulated process.

    doomed: it is killed as soon as one of its threads comes to a point. parked: threads that could run, were it not
    stopped. state: of the modules that keep something for their process; see modules.py. namespace: in which its pid means
    something. birth: None: now.
    """

    def __init__(
        self, kernel: Kernel, pid: int, name: str, namespace: int = 0, birth: int | None = None
    ) -> None:
        self.kernel, self.pid, self.name, self.namespace = kernel, pid, name, namespace
        if birth is None:
            kernel.last_birth = max(kernel.last_birth + 1, int(kernel.scheduler.now * TICKS_PER_S))
        self.birth = kernel.last_birth if birth is None else birth
        self.threads: dict[SimThread, None] = {}
        self.descriptors: dict[int, Any] = {}
        self.most_descriptors = 1024
        self.parked: list[SimThread] = []
        self.is_dead = self.is_stopped = self.doomed = False
        self.stopped_at = self.stopped_for = 0.0
        self.state: dict[tuple[str, str], Any] = {}
        self.at_death: list[Callable[[], None]] = []
        self.watchers: list[Any] = []  # pidfds
        self.environment: dict[str, str] = {}
        self.told: Any = None  # what the world has to say to it

    def __repr__(self) -> str:
        return f"<{self.name} {self.pid}>"

    def start_thread(self, function: Callable[[], Any], name: str) -> SimThread:
        thread = SimThread(self.kernel.scheduler, self, function, name)
        self.threads[thread] = None
        self.kernel.scheduler.start(thread)
        return thread

    # --- descriptors ---------------------------------------------------------------------------------------

    def check_for_descriptor(self) -> None:
        """OSError where there are too many."""
        if len(self.descriptors) >= self.most_descriptors:
            raise OSError(errno.EMFILE, real_os.strerror(errno.EMFILE))

    def open(self, description: Any) -> int:
        """The lowest number that is free. OSError where there are too many."""
        self.check_for_descriptor()
        number = LOWEST_DESCRIPTOR
        while number in self.descriptors:
            number += 1
        self.descriptors[number] = description
        description.references += 1
        return number

    def get(self, number: int) -> Any:
        try:
            return self.descriptors[number]
        except KeyError:
            raise OSError(errno.EBADF, real_os.strerror(errno.EBADF)) from None

    def close(self, number: int) -> None:
        description = self.get(number)
        del self.descriptors[number]
        self._drop(description)

    def _drop(self, description: Any) -> None:
        if isinstance(description, OpenFile):
            description.let_go(self)
        description.references -= 1
        if not description.references:
            description.close(self)

    # --- the end -------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL: not another step of any of its threads. Their frames are kept, so that nothing is finalized."""
        if self.is_dead:
            return
        self._stop_for_good()
        for function in self.at_death:
            function()
        for pidfd in self.watchers:
            pidfd.changed()
        self.kernel.died(self)

    def _stop_for_good(self) -> None:
        self.is_dead, self.doomed = True, False
        self.close_all()

    def close_all(self) -> None:
        for description in list(self.descriptors.values()):
            self._drop(description)
        self.descriptors.clear()

    def inherit(self, parent: Process) -> None:
        """After a fork: copies of all descriptors."""
        self.descriptors = dict(parent.descriptors)
        for description in self.descriptors.values():
            description.references += 1

    def exec(self, heir: Process) -> None:
        """Another program runs under this pid from now on. All that was open here was to be closed on exec."""
        self._stop_for_good()
        heir.watchers, self.watchers = self.watchers, []
        for pidfd in heir.watchers:
            pidfd.process = heir

    def exit(self) -> None:
        """It ends by itself. Does not return where one of its threads calls it."""
        self.kill()
        if getattr(current_thread(), "process", None) is self:
            self.kernel.scheduler.preempt()

    def stop(self) -> None:
        if not self.is_stopped and not self.is_dead:
            self.is_stopped = True
            self.stopped_at = self.kernel.scheduler.now

    def go_on(self) -> None:
        if self.is_stopped:
            self.is_stopped = False
            self.stopped_for += self.kernel.scheduler.now - self.stopped_at
            self.kernel.scheduler.runnable += self.parked
            self.parked = []

    def stopped_so_far(self) -> float:
        """Seconds for which it could not run."""
        more = self.kernel.scheduler.now - self.stopped_at if self.is_stopped else 0.0
        return self.stopped_for + more

    def crashed(self, thread: SimThread, error: BaseException) -> None:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.kernel.trouble(f"thread {thread.name!r} of {self} was ended by\n{text}")
