"""How a process finds out that it is a forked child, and what happens then.

The mark of a process is one byte on a page that the kernel wipes in every child (MADV_WIPEONFORK), however it was
forked: os.fork, multiprocessing, or C code that runs no hooks (uwsgi). Everything that belongs to
one process keeps the mark of that process. So `not mark[0]` says "this belongs to another process", and it says so
from the first instruction of the child on: also to what is finalized before any hook runs.

Two lines of defence, which run the same renewal:

1. `os.register_at_fork`. It does almost nothing: what the parent holds becomes immortal, inherited
   descriptors are closed, and every forkable gets empty hands. No byte is sent on an inherited connection,
   no hook of a recipe is called, no lock of the parent is taken (its holder may not exist here).
2. `notice_fork`, at every use. It finds what the hook could not do: there was no hook, or it was
   interrupted. CPython swallows what a hook raises. Where there was no hook, the interpreter does not know of the
   fork either, and is told (unhooked.py).

The renewal may be left by an exception between any two instructions. So every part of it can be done again,
one part's failure skips no other, and the new mark is announced last.

The order in which parts are renewed, and within each step that in which they were registered:

1. what modules keep (`call_in_children`): locks, and tables of the whole process;
2. members (`Turn.MEMBER`): inventory, link, background thread, then their pools;
3. what uses members (`Turn.USER`): credentials, pools of clients.

This is the only file that calls `os.register_at_fork`.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import weakref
from _ctypes import Py_INCREF
from _thread import RLock, get_native_id
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from time import monotonic, sleep
from typing import Any, Protocol

from mppool.process.locks import release_own

if hasattr(os, "register_at_fork"):
    from mppool.process.unhooked import finish_fork
else:  # Windows, which has no fork

    def finish_fork() -> bool:
        """Nothing to do."""
        return False


_MADV_WIPEONFORK = 18  # Linux 4.14; the module mmap does not name it


class Forkable(Protocol):
    """Something that must start again in a child, with nothing."""

    def after_fork_in_child(self) -> None:
        """Start with nothing. No I/O, no logging, no lock of the parent.

        It may be left by an exception at any instruction, and is called again then.
        """


class Turn(IntEnum):
    """When a Forkable is renewed: what lies below first."""

    MEMBER = 1
    USER = 2


class Mark(Protocol):
    """`mark[0]` is not zero in the process that made it, and zero in its children."""

    def __getitem__(self, index: int, /) -> int: ...


class _PidMark:
    """Where no page can be had that is wiped: compares pids. Slower: a system call each time."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int, /) -> int:
        return self._pid == os.getpid()


def new_mark() -> Mark:
    """A mark of the calling process."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
        page[0] = 1
    except (OSError, ValueError, AttributeError):  # an older kernel, another system, no memory
        return _PidMark()
    return page


# By a number that counts up, so that they are found in the order in which they were registered. Each leaves by itself.
_forkables: dict[int, tuple[Turn, weakref.ref[Forkable]]] = {}
_numbers = itertools.count()
_functions: list[Callable[[], None]] = []
# Called around a fork in the process that forks.
_before: list[Callable[[], None]] = []
_after_in_parent: list[Callable[[], None]] = []
_functions_done = 0

_mark: Mark = new_mark()
# The mark of this process while it is being renewed, and what of it is done already.
_next_mark: Mark = _mark
# As long as there are forks under way that run hooks (two threads may fork at one time), and in a child until ours has run.
# Only methods of C change it, so no interrupt can leave it wrong.
_hooked: deque[None] = deque()
_renewed: weakref.WeakSet[Forkable] = weakref.WeakSet()
# Parts that have failed to renew themselves: tried again at each use until they succeed.
_failed: list[Forkable] = []
# By pid: held while this process is renewed. A child does not find its parent's.
_renewing: dict[int, Any] = {}
# Held while modules are imported and decoders made, so that no child is forked in the middle of that. Not
# gevent's: no greenlet is switched to while it is held.
_preparing = RLock()
_LONGEST_PREPARATION_S = 5.0
"""A thread that hangs in an import must not hang every fork."""
# The kernel's numbers of threads that have said that they end. Guarded by `_preparing`.
_ending: deque[int] = deque()
_LONGEST_END_S = 0.5
"""A thread that hangs at its end must not hang every fork."""
_END_POLL_S = 0.0002


def own_mark() -> Mark:
    """The mark of this process, for what is made now."""
    return _mark if _mark[0] else _next_mark


def notice_fork() -> None:
    """Call this before anything is done that reaches beyond this process's own memory.

    If this process is a child that was not told so, it is renewed first. Raises what a part raises that
    cannot be renewed, and an interrupt after all is done.
    """
    if _failed or not _mark[0]:
        _renew()


def renew_in_children(forkable: Forkable, turn: Turn = Turn.USER) -> None:
    """From now on `forkable.after_fork_in_child()` is called in every forked child, while it lives."""
    notice_fork()
    number = next(_numbers)
    _forkables[number] = turn, weakref.ref(forkable, lambda _: _forkables.pop(number, None))


def call_around_forks(before: Callable[[], None], after_in_parent: Callable[[], None]) -> None:
    """From now on these are called in the process that forks: only where the fork runs hooks (os.fork)."""
    _before.append(before)
    _after_in_parent.append(after_in_parent)


def call_in_children(function: Callable[[], None]) -> None:
    """From now on `function()` is called in every forked child, as a Forkable's method would be."""
    _functions.append(function)


def prepare(*steps: Callable[[], object]) -> None:
    """Import modules and make decoders, so that no child is forked while that is half done.

    A child would wait for ever for the import lock of a thread that does not exist there, or decode with
    half of a type's description.
    """
    with _preparing:
        for step in steps:
            step()


def thread_ends() -> None:
    """The last thing that a thread does which has called a driver. No child is forked before it is gone.

    When the interpreter has finished with a thread, libraries tidy up after it. OpenSSL does that under a lock. A
    child that is forked in this instant finds the lock taken by a thread that it does not have, and its first login
    never ends.
    """
    number = get_native_id()
    if number == os.getpid():
        return  # the main thread, whose greenlet this is: it does not end
    with _preparing:
        for _ in range(min(2, len(_ending))):  # one more than is added, so that they do not pile up
            earlier = _ending.popleft()
            if _is_thread(earlier):
                _ending.append(earlier)
        _ending.append(number)


def _is_thread(number: int) -> bool:
    """Whether the kernel still has this thread of this process; False also where /proc is not to be seen."""
    return os.access(f"/proc/self/task/{number}", os.F_OK)


def _wait_for_ends() -> None:
    """Threads that have begun to end have ended. Caller holds `_preparing`, so that no other begins."""
    until = monotonic() + _LONGEST_END_S
    while _ending:
        if not _is_thread(_ending[0]) or monotonic() >= until:
            _ending.popleft()
        else:
            sleep(_END_POLL_S)


def make_immortal(thing: Any) -> None:
    """Make an object, and all that it refers to, immortal.

    Closing or merely finalizing an inherited connection would end the parent's session, and the
    interpreter finalizes module globals at exit. A reference without an owner is never given back.
    """
    Py_INCREF(thing)  # of _ctypes: ctypes itself would cost every worker another 0.1 MB


def close_quietly(descriptors: set[int]) -> None:
    """Close inherited descriptors without a byte being sent, and empty the set.

    Each is taken from the set first: closed twice, the number might be somebody else's by then.
    """
    while descriptors:
        descriptor = descriptors.pop()
        try:
            os.close(descriptor)
        except OSError:  # the parent closed it in the instant of the fork
            continue


# --- the renewal -----------------------------------------------------------------------------------------


def _renew() -> None:
    """Renew everything that is not renewed yet. See `notice_fork` for what it raises."""
    if not (_hooked or _mark[0] or _next_mark[0]):
        _hooked.append(None)  # until all is renewed: what follows runs hooks, ours too
        finish_fork()
    interrupt: BaseException | None = None
    lock = _renewing.setdefault(os.getpid(), RLock())
    while True:
        try:
            with lock:
                errors = _renew_all()
            break
        except BaseException as error:  # noqa: BLE001  # it is raised when all is done
            interrupt = error
            release_own(lock)
    if interrupt is not None:
        raise interrupt
    if errors:
        raise errors[0]


def _renew_all() -> list[Exception]:
    """Caller holds the lock of this process."""
    global _mark, _next_mark, _renewed, _functions_done
    if _mark[0] and not _failed:
        return []  # another thread was faster
    if not _next_mark[0]:
        _forget_half_imported()
        _preparing._at_fork_reinit()  # type: ignore[attr-defined]
        _ending.clear()
        _renewed = weakref.WeakSet()
        _failed.clear()
        _functions_done = 0
        _next_mark = new_mark()
    errors: list[Exception] = []
    for function in _functions[_functions_done:]:
        _do(function, errors)
        _functions_done += 1
    for forkable in _in_order():
        if forkable in _renewed:
            continue
        if _do(forkable.after_fork_in_child, errors):
            _renewed.add(forkable)
            if forkable in _failed:
                _failed.remove(forkable)
        elif forkable not in _failed:
            _failed.append(forkable)
    _mark = _next_mark
    _hooked.clear()
    for pid in list(_renewing):
        if pid != os.getpid():
            _renewing.pop(pid, None)
    return errors


def _in_order() -> list[Forkable]:
    registered = sorted(_forkables.items(), key=lambda item: (item[1][0], item[0]))
    return [forkable for _, (_, found) in registered if (forkable := found()) is not None]


def _do(function: Callable[[], None], errors: list[Exception]) -> bool:
    """Whether it succeeded. An interrupt passes through."""
    try:
        function()
    except Exception as error:  # noqa: BLE001  # it is raised when all others are done
        errors.append(error)
        return False
    return True


_IMPORTED_LATE = ("mppool", "filelock")


def _forget_half_imported() -> None:
    """Drop modules that another thread was importing at the fork: here nobody finishes them.

    Without this a child finds them in sys.modules, half empty, for ever, or waits for ever for the lock of
    a thread that does not exist here. It is the second line: see `prepare`. Only what mppool imports where
    it is first used.
    """
    locks = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
    for name, module in list(sys.modules.items()):
        specification = getattr(module, "__spec__", None)
        if name.partition(".")[0] in _IMPORTED_LATE and getattr(
            specification, "_initializing", False
        ):
            sys.modules.pop(name, None)
            locks.pop(name, None)


# --- hooks -----------------------------------------------------------------------------------------------


def _after_fork_in_child() -> None:
    try:
        notice_fork()
    except BaseException:
        notice_fork()  # it may have been interrupted before it had begun
        raise


def _call(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_wait_for_ends)  # what is registered later is called earlier
    os.register_at_fork(
        # Methods of C: no interrupt can leave the lock held.
        before=partial(_preparing.acquire, timeout=_LONGEST_PREPARATION_S),
        after_in_parent=_preparing.release,
        after_in_child=_after_fork_in_child,
    )
    os.register_at_fork(before=partial(_hooked.append, None), after_in_parent=_hooked.pop)
    # The last one to be registered is called first before a fork, so these do not run while the lock is held.
    os.register_at_fork(
        before=partial(_call, _before), after_in_parent=partial(_call, _after_in_parent)
    )
