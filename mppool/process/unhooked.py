"""A child that C code has forked without telling the interpreter: have CPython do there what it does after `os.fork`.

Until then the interpreter's lock is a copy of the parent's. Where one of the parent's threads waited for it at the fork, as
a background thread does that was about to run, the copy waits for that thread too: as soon as the child has a second
thread, one of the two sleeps for ever. CPython's documentation asks every program that forks to call
`PyOS_AfterFork_Child`; uwsgi does so only where it is told to.

Nothing here lets go of the interpreter's lock before that call: letting go of it is what hangs. So the functions of C are
called directly, and /proc is read by them.
"""

from __future__ import annotations

import _imp
import os
import sys
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_PYTHONAPI,
    Array,
    CFuncPtr,
    _SimpleCData,
    dlopen,
    dlsym,
)


class _Char(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"


class _Int(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Pointer(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


class _Buffer(Array):  # type: ignore[type-arg]
    _type_ = _Char
    _length_ = 1024


class _ToInt(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_PYTHONAPI
    _restype_ = _Int


class _ToPointer(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_PYTHONAPI
    _restype_ = _Pointer


_symbols = dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]
_open, _read, _close, _after_fork_child = (
    _ToInt(dlsym(_symbols, name)) for name in ("open", "read", "close", "PyOS_AfterFork_Child")
)
_first_interpreter, _next_interpreter = (
    _ToPointer(dlsym(_symbols, name))
    for name in ("PyInterpreterState_Head", "PyInterpreterState_Next")
)
_buffer = _Buffer()


def finish_fork() -> bool:
    """Call `PyOS_AfterFork_Child`, which runs the hooks of `os.register_at_fork` too. False: it cannot be done here.

    It ends all interpreters but the main one, and knows of no thread but the calling one. So it is done only where there
    are no others.
    """
    if _number_of_threads() != 1 or _next_interpreter(_Pointer(_first_interpreter())):
        return False
    if sys.version_info >= (3, 13):  # it gives back the lock that `os.fork` has taken
        if _imp.lock_held():
            return False
        _imp.acquire_lock()
    _after_fork_child()
    return True


def _number_of_threads() -> int:
    """Of this process, as the kernel knows them; 0 where /proc does not tell."""
    descriptor = _open(b"/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
    if descriptor < 0:
        return 0
    length = _read(descriptor, _buffer, _Buffer._length_)
    _close(descriptor)
    # After the name of the program, which may hold anything, the state is field 3, and this is field 20.
    fields = bytes(_buffer)[: max(0, length)].rpartition(b")")[2].split()
    return int(fields[17]) if len(fields) > 17 else 0
