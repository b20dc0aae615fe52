"""Threads of all simulated processes in one thread of the system, a clock that jumps, and one source of chance.

A simulated thread is a greenlet. It runs until it comes to a point (`point`): at each primitive, and, where the source is
instrumented, at each statement. There another one may be chosen. Where none can run, the clock goes on to the next
timer. So a run is a function of its seed.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit, getcurrent, greenlet

if TYPE_CHECKING:
    from tests.simulation.processes import Process

STEP_S = 1e-6
"""Looking at the clock takes so long, so that who waits awake waits for some time."""
SWITCH_S = 2e-6
MOST_SWITCHES = 400_000
"""Without the clock going on by a second: nobody can have so much to do."""


class Stuck(Exception):
    """Nobody can run, and nothing is due; or they run, and get nowhere."""


class SimThread(greenlet):
    """One thread of a simulated process.

    token: counts its sleeps, so that a timer of an earlier one is known for what it is. values: its thread-locals. spins:
    how often it tried something in vain since it slept.
    """

    def __init__(
        self, scheduler: Scheduler, process: Process, function: Callable[[], Any], name: str
    ) -> None:
        super().__init__(parent=scheduler.hub)
        self.scheduler, self.process, self.function, self.name = scheduler, process, function, name
        scheduler.threads += 1
        self.number = scheduler.threads
        self.token = self.spins = 0
        self.is_blocked = self.timed_out = self.has_ended = False
        self.loop: Any = None  # the event loop that it runs
        self.values: dict[Any, Any] = {}
        self.joiners: list[SimThread] = []

    def run(self) -> None:
        try:
            self.function()
        except GreenletExit:
            return
        except SystemExit:
            pass
        except BaseException as error:
            if here.scheduler is not self.scheduler:
                return  # the world has ended
            self.process.crashed(self, error)
        self.has_ended = True
        self.process.threads.pop(self, None)
        for joiner in self.joiners:
            self.scheduler.wake(joiner)


class Scheduler:
    """Who runs now, who could, and who sleeps until when.

    patience: so many points pass on average before another thread is chosen. load: takes the state of a process in, so
    that its threads can run. exchange: has asyncio know which event loop runs now.
    """

    def __init__(
        self,
        chance: random.Random,
        patience: float,
        load: Callable[[Process], None],
        exchange: Callable[[Any, Any], None],
    ) -> None:
        self.chance, self.load, self.exchange = chance, load, exchange
        self._random = chance.random
        self._spread = 2 * patience
        self.hub = getcurrent()
        self.now = 1000.0
        self.suspended = 0.0  # seconds for which the machine was
        self.stepped = 0.0  # seconds by which its wall clock is wrong
        self.loaded: Process | None = None
        self.runnable: list[SimThread] = []
        self.timers: list[tuple[float, int, Any, int]] = []
        self.threads = self.switches = self._timers_made = 0
        self._watched_at = self.now
        self.countdown = 1.0
        self._beginning: SimThread | None = None
        self.trace: list[str] | None = None
        self.running: Any = None  # the event loop of the thread that runs
        self.tasks = 0
        self.reached: Counter[str] = Counter()  # handlers of exceptions

    # --- chosen --------------------------------------------------------------------------------------------

    def start(self, thread: SimThread) -> None:
        self.runnable.append(thread)

    def preempt(self) -> None:
        """Another one may run. What has no thread of its own, as the world itself, goes on."""
        self.countdown = self._random() * self._spread
        current = getcurrent()
        if type(current) is not SimThread:
            return
        if current.process.doomed:
            current.process.kill()
        if self.runnable or current.process.is_stopped or current.process.is_dead:
            self.runnable.append(current)
            self._choose()

    def _choose(self) -> None:
        """Another one runs; returns when the calling thread has been chosen again."""
        self.switches += 1
        self.now += SWITCH_S
        if self.switches > MOST_SWITCHES:
            self._watch()
        while True:
            if self.timers and self.timers[0][0] <= self.now:
                self._fire()
            runnable = self.runnable
            if not runnable:
                self.hub.switch()
                return
            index = int(self._random() * len(runnable))
            thread = runnable[index]
            runnable[index] = runnable[-1]
            runnable.pop()
            process = thread.process
            if process.is_dead:
                continue
            if process.is_stopped:
                process.parked.append(thread)
                continue
            if self.trace is not None:
                self.trace.append(f"{self.now:.6f} {process.pid} {thread.number}")
            if process is not self.loaded:
                self.load(process)
                self.loaded = process
            if thread.loop is not self.running:
                self.exchange(self.running, thread.loop)
                self.running = thread.loop
            self._switch_to(thread)
            return

    def _switch_to(self, thread: SimThread) -> None:
        """It runs; returns when the caller does again.

        A thread begins as deep in the stack as who starts it is. So the hub starts all: else each generation of threads
        would come nearer to the greatest depth.
        """
        if thread or getcurrent() is self.hub:
            thread.switch()
        else:
            self._beginning = thread
            self.hub.switch()
        while self._beginning is not None and getcurrent() is self.hub:
            begins, self._beginning = self._beginning, None
            begins.switch()

    def _watch(self) -> None:
        self.switches = 0
        if self.now < self._watched_at + 1.5 and type(getcurrent()) is SimThread:
            raise Stuck(f"threads run, and the clock stands still at {self.now:.6f}")
        self._watched_at = self.now

    # --- asleep --------------------------------------------------------------------------------------------

    def block(self, until: float | None) -> bool:
        """Sleep until somebody wakes this thread: True; or until that instant (None: never): False."""
        current = getcurrent()
        assert type(current) is SimThread, "the world itself never sleeps"
        if current.process.doomed:
            current.process.kill()
        if until is not None:
            if until <= self.now:
                self.preempt()
                return False
            self._timers_made += 1
            heapq.heappush(self.timers, (until, self._timers_made, current, current.token))
        current.is_blocked = True
        current.spins = 0
        self._choose()
        return not current.timed_out

    def wake(self, thread: SimThread) -> None:
        if thread.is_blocked:
            thread.is_blocked = thread.timed_out = False
            thread.token += 1
            self.runnable.append(thread)

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.block(until)

    def call_at(self, at: float, function: Callable[[], None]) -> None:
        """Have something happen in the world, outside of all processes."""
        self._timers_made += 1
        heapq.heappush(self.timers, (at, self._timers_made, function, -1))

    def _fire(self) -> None:
        while self.timers and self.timers[0][0] <= self.now:
            _, _, whom, token = heapq.heappop(self.timers)
            if token == -1:
                whom()
            elif whom.is_blocked and whom.token == token:
                whom.is_blocked = False
                whom.timed_out = True
                whom.token += 1
                self.runnable.append(whom)

    # --- the world's own loop ------------------------------------------------------------------------------

    def run(self, is_over: Callable[[], bool], until: float) -> bool:
        """Let the threads run until something is so, which is looked at whenever all sleep. False: it is too late."""
        assert getcurrent() is self.hub
        while not is_over():
            if self.runnable:
                self._choose_first()
                continue
            if not self.timers:
                raise Stuck(f"at {self.now:.6f} everybody sleeps for ever")
            at = self.timers[0][0]
            if at > until:
                self.now = max(self.now, until)
                return is_over()
            self.now = max(self.now, at)
            self._fire()
        return True

    def _choose_first(self) -> None:
        self._choose()


class Over:
    """What stands in a scheduler's place when its world has ended: what is still finalized does nothing."""

    now = suspended = stepped = 0.0
    countdown = 0.0

    def __init__(self) -> None:
        self.reached: Counter[str] = Counter()

    def preempt(self) -> None:
        self.countdown = 0.0
        if type(getcurrent()) is SimThread:
            raise GreenletExit

    def block(self, until: float | None) -> bool:
        raise GreenletExit

    sleep = block

    def wake(self, thread: SimThread) -> None:
        return


class Here:
    """Where the running world is to be found."""

    scheduler: Any = Over()


here = Here()


def point() -> None:
    """Here another thread may be chosen."""
    scheduler = here.scheduler
    scheduler.countdown -= 1.0
    if scheduler.countdown <= 0.0:
        scheduler.preempt()


def monotonic() -> float:
    scheduler = here.scheduler
    scheduler.now += STEP_S
    return scheduler.now


def current_thread() -> Any:
    """The SimThread that runs, or the greenlet of the world itself."""
    return getcurrent()
