"""What stands in the place of `threading`, `_thread`, `time` and `queue`."""

from __future__ import annotations

import queue
import threading as real_threading
import time as real_time
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.simulation.scheduler import SimThread, current_thread, here, monotonic, point

MOST_SPINS = 1000

TIMEOUT_MAX = real_threading.TIMEOUT_MAX


def _until(timeout: float) -> float | None:
    return None if timeout < 0 else here.scheduler.now + timeout


def has_not_slept() -> None:
    """Whoever does this again and again, and never sleeps, spins."""
    thread = current_thread()
    if type(thread) is SimThread:
        thread.spins += 1
        if thread.spins == MOST_SPINS:
            thread.process.kernel.trouble(f"{thread.name!r} of {thread.process} spins")


class Lock:
    """A lock of the simulated threads."""

    __slots__ = ("_is_held", "_waiting")

    def __init__(self) -> None:
        self._is_held = False
        self._waiting: deque[SimThread] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        point()
        if not self._is_held:
            self._is_held = True
            return True
        if not blocking or timeout == 0:
            has_not_slept()
            return False
        until = _until(timeout)
        while self._is_held:
            thread = current_thread()
            self._waiting.append(thread)
            woken = here.scheduler.block(until)
            if thread in self._waiting:
                self._waiting.remove(thread)
            if not woken and self._is_held:
                return False
        self._is_held = True
        return True

    def release(self) -> None:
        if not self._is_held:
            raise RuntimeError("release unlocked lock")
        self._is_held = False
        self._wake_next()

    def _wake_next(self) -> None:
        if self._waiting:
            here.scheduler.wake(self._waiting.popleft())

    def locked(self) -> bool:
        return self._is_held

    def _at_fork_reinit(self) -> None:
        self.__init__()  # type: ignore[misc]

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock:
    """The same, which its owner may take again."""

    __slots__ = ("_count", "_lock", "_owner")

    def __init__(self) -> None:
        self._lock = Lock()
        self._owner: Any = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = current_thread()
        if self._owner is me:
            self._count += 1
            return True
        if not self._lock.acquire(blocking, timeout):
            return False
        self._owner, self._count = me, 1
        return True

    def release(self) -> None:
        if self._owner is not current_thread():
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._owner = None
            self._lock.release()

    def _is_owned(self) -> bool:
        return self._owner is current_thread()

    def _at_fork_reinit(self) -> None:
        self.__init__()  # type: ignore[misc]

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Condition:
    """See threading.Condition."""

    def __init__(self, lock: Any = None) -> None:
        self._lock = RLock() if lock is None else lock
        self.acquire, self.release = self._lock.acquire, self._lock.release
        self._waiting: deque[Lock] = deque()

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *arguments: object) -> None:
        self._lock.__exit__(*arguments)

    def wait(self, timeout: float | None = None) -> bool:
        gate = Lock()
        gate.acquire()
        self._waiting.append(gate)
        self.release()
        try:
            woken = gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
            if not woken and gate in self._waiting:
                self._waiting.remove(gate)
            return woken
        finally:
            self.acquire()

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        until = None if timeout is None else monotonic() + timeout
        while not (result := predicate()):
            left = None if until is None else until - monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._waiting))):
            self._waiting.popleft().release()

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class Event:
    """See threading.Event."""

    def __init__(self) -> None:
        self._condition = Condition(Lock())
        self._flag = False

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        with self._condition:
            self._flag = True
            self._condition.notify_all()

    def clear(self) -> None:
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        with self._condition:
            return bool(self._flag or self._condition.wait(timeout) or self._flag)


class Thread:
    """See threading.Thread: a thread of the process whose thread makes it."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., Any] | None = None,
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self._target, self._args, self._kwargs = target, args, kwargs or {}
        self.name = name or "Thread"
        self.daemon = daemon
        self._thread: SimThread | None = None

    def start(self) -> None:
        self._thread = current_thread().process.start_thread(self.run, self.name)
        point()

    def run(self) -> None:
        if self._target is not None:
            self._target(*self._args, **self._kwargs)

    def is_alive(self) -> bool:
        return self._thread is not None and not self._thread.has_ended

    def join(self, timeout: float | None = None) -> None:
        thread = self._thread
        assert thread is not None
        until = None if timeout is None else monotonic() + timeout
        while not thread.has_ended:
            thread.joiners.append(current_thread())
            if not here.scheduler.block(until):
                return


class local:  # noqa: N801  # the standard library's name
    """See threading.local."""

    def __getattribute__(self, name: str) -> Any:
        values = _values(self)
        if name in values:
            return values[name]
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _values(self)[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del _values(self)[name]
        except KeyError:
            raise AttributeError(name) from None


_values_of_the_world: dict[Any, Any] = {}


def _values(of: local) -> dict[str, Any]:
    kept = getattr(current_thread(), "values", _values_of_the_world)
    found = kept.get(of)
    if found is None:
        found = kept[of] = {}
    return found


class SimpleQueue:
    """See queue.SimpleQueue."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiting: deque[SimThread] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._waiting:
            here.scheduler.wake(self._waiting.popleft())
        point()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        point()
        until = None if timeout is None else here.scheduler.now + timeout
        while not self._items:
            thread = current_thread()
            self._waiting.append(thread)
            woken = block and here.scheduler.block(until)
            if thread in self._waiting:
                self._waiting.remove(thread)
            if not woken and not self._items:
                raise queue.Empty
        return self._items.popleft()


def get_ident() -> int:
    return getattr(current_thread(), "number", 0)


def _sleep(seconds: float) -> None:
    here.scheduler.sleep(seconds)


def wall_clock() -> float:
    """Of the machine, which may be put right or wrong."""
    return true_clock() + float(here.scheduler.stepped)


def true_clock() -> float:
    """Of whoever issues tokens."""
    return 1_700_000_000.0 + boot_clock()


def boot_clock() -> float:
    """It goes on while the machine is suspended."""
    return monotonic() + float(here.scheduler.suspended)


threading = SimpleNamespace(
    Lock=Lock, RLock=RLock, Condition=Condition, Event=Event, Thread=Thread, local=local,
    get_ident=get_ident, get_native_id=get_ident, current_thread=current_thread, TIMEOUT_MAX=TIMEOUT_MAX,
)  # fmt: skip
_thread = SimpleNamespace(RLock=RLock, get_native_id=get_ident, allocate_lock=Lock)
time = SimpleNamespace(
    monotonic=monotonic, time=wall_clock, sleep=_sleep, perf_counter=monotonic,
    clock_gettime=lambda _clock: boot_clock(), CLOCK_BOOTTIME=7,
    gmtime=real_time.gmtime, localtime=real_time.gmtime, strftime=real_time.strftime,
)  # fmt: skip
queues = SimpleNamespace(SimpleQueue=SimpleQueue, Empty=queue.Empty, Queue=queue.Queue)
