"""Unkind things that a worker of a chaos run does to itself: each a function that says what it needs."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

# Its functions keep the interpreter's lock while they run.
_libc = ctypes.PyDLL(None)

ROOT = Path(__file__).parent.parent.parent


# --- forks by C code -------------------------------------------------------------------------------------

_LONGER_THAN_A_SWITCH_US = 12_000


def fork_by_c(patience_s: float = 0.5) -> int | None:
    """Fork by the C library, without a hook. None where no moment was found that is safe for Python itself.

    A thread that waits for the interpreter's lock at the fork is waited for in the child, for ever: what the C
    library knows of its waiters is copied as well. Such a thread wakes up every 5 ms. So all others must have
    slept for longer than that, and through the fork too; else the child is killed at once.
    """
    deadline = time.monotonic() + patience_s
    me = threading.get_native_id()
    while time.monotonic() < deadline:
        others = [int(name) for name in os.listdir("/proc/self/task") if int(name) != me]
        before = _asleep(others)
        _libc.usleep(_LONGER_THAN_A_SWITCH_US)
        if before is None or _asleep(others) != before:
            time.sleep(0.002)
            continue
        pid: int = _libc.fork()
        if pid and _asleep(others) != before:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        return pid
    return None


def _asleep(threads: list[int]) -> list[bytes] | None:
    """How often each has gone to sleep; None if one of them does not sleep, or there are others."""
    if b"Threads:\t%d\n" % (len(threads) + 1) not in _read(b"/proc/self/status"):
        return None
    found = []
    for thread in threads:
        text = _read(b"/proc/self/task/%d/status" % thread)
        if b"State:\tS" not in text:
            return None
        found.append(text[text.index(b"voluntary_ctxt_switches") :])
    return found


def _read(path: bytes) -> bytes:
    """A small file, without the interpreter's lock being given up."""
    descriptor = _libc.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if descriptor < 0:
        return b""
    buffer = ctypes.create_string_buffer(8192)
    size = _libc.read(descriptor, buffer, 8192)
    _libc.close(descriptor)
    return buffer.raw[: max(size, 0)]


# --- signals ---------------------------------------------------------------------------------------------


_HAVE_HOOKS = frozenset(module.__file__ for module in (logging, threading, random))
"""The standard library's own hooks cannot be interrupted without harm: the one of logging leaves its lock taken, and
every other thread of that child waits at its first line for ever. That is CPython's, with or without a pool."""


class Birth(BaseException):
    """What a signal handler raises in a child that has just been born."""


def _raise_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    while frame is not None:
        if frame.f_code.co_filename in _HAVE_HOOKS:
            return
        frame = frame.f_back
    raise Birth


def fork_under_a_signal(spins: int) -> int:
    """os.fork, and a signal to the child, whose handler raises wherever the child is by then.

    From the main thread only. In the child the signal is ignored when this returns.
    """
    parent, pid = os.getpid(), 0
    signal.signal(signal.SIGUSR1, _raise_once)
    try:
        pid = os.fork()
        if pid == 0:
            time.sleep(
                0.05
            )  # for the signal; it may have come already, and CPython swallowed it in a hook
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    except Birth:
        pid = 0
    if os.getpid() != parent:
        return 0
    for _ in range(spins):
        pass
    os.kill(pid, signal.SIGUSR1)
    return pid


@contextmanager
def interval_timer(period_s: float) -> Iterator[None]:
    """A block in which a signal arrives ever so often, with a handler that does nothing. Main thread only."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, period_s, period_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# --- descriptors -----------------------------------------------------------------------------------------


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """A block in which this process can open so many files and no more, whatever else its threads do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd"))) + 4
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
    taken: list[int] = []
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                break
        for _ in range(min(spare, len(taken))):
            os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- exec ------------------------------------------------------------------------------------------------


def exec_python(module: str, *arguments: str) -> None:
    """Become another interpreter that runs a module of the tests."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


def exec_sleep(seconds: float) -> None:
    """Become a program that does not use the pool."""
    os.execv("/bin/sleep", ["sleep", f"{seconds:.2f}"])


# --- log handlers ----------------------------------------------------------------------------------------


class _Handler(logging.Handler):
    def __init__(self, do: Callable[[], None]) -> None:
        super().__init__()
        self._do = do

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the handler's lock: a child of C code would inherit it as it is."""
        record.getMessage()
        self._do()
        return True


def log_to(do: Callable[[], None] | None) -> None:
    """From now on every line of mppool's is told to this function only; None: no line is logged."""
    logger = logging.getLogger("mppool")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logging.raiseExceptions = False
    if do is None:
        logging.disable(logging.CRITICAL)
        return
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(_Handler(do))
    logging.disable(logging.NOTSET)


def processes_holding(inode: int) -> dict[int, str]:
    """Other processes that have this pipe open, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # it ended meanwhile, or is another user's
            links = [os.readlink(one) for one in (entry / "fd").iterdir()]
            if f"pipe:[{inode}]" in links:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(entry.name)] = command.strip()
    return found
