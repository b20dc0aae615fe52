"""Calls of the C library that Python does not offer, without `ctypes`: that would cost every start 15 ms."""

from __future__ import annotations

import _ctypes
from typing import Any

_PR_SET_DUMPABLE = 4
_IN_NONBLOCK, _IN_CLOEXEC = 0o4000, 0o2000000
_IN_MOVED_FROM, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x40, 0x200, 0x400, 0x800
_REMOVALS = _IN_MOVED_FROM | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF


def forbid_core_dumps() -> bool:
    """From now on nothing of this process is written to a core file, however it ends, or read by a debugger.

    Not the limit of their size alone: what is piped to a program (systemd-coredump, apport) knows no limit.
    """
    return _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0) == 0


def watch_removals() -> int | None:
    """A descriptor that can be read when something was removed from a directory, or None; see inotify(7)."""
    descriptor = _call("inotify_init1", _IN_NONBLOCK | _IN_CLOEXEC)
    return None if descriptor < 0 else descriptor


def add_directory(descriptor: int, directory: bytes) -> bool:
    """Watch this directory as well; also one that is watched already."""
    return _call("inotify_add_watch", descriptor, directory, _REMOVALS) >= 0


def _call(name: str, *arguments: Any) -> int:
    # Looked up each time: this is called a few times in the life of a server.
    function = _ctypes.dlsym(_ctypes.dlopen(None, 0), name)  # type: ignore[arg-type]
    result: int = _ctypes.call_function(function, arguments)
    return result
