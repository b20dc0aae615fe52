"""What happens to a member in a forked child.

One `os.register_at_fork` for all members. It works for every way to fork: a plain os.fork (gunicorn),
multiprocessing, a double fork. In the child it does almost nothing: it marks the parent's holdings as
forked, makes them immortal, and gives every member new ones. No byte is sent on an inherited connection,
no hook is called, no lock of the parent is taken (its holder may not exist here).
"""

from __future__ import annotations

import os
import sys
import weakref
from _ctypes import Py_INCREF
from typing import Any, Protocol


class Forkable(Protocol):
    """Something that must start afresh in a child."""

    def after_fork_in_child(self) -> None:
        """Start afresh. No I/O, no logging, no lock of the parent."""


_IMPORTED_LATE = ("mppool", "filelock")

_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def renew_in_children(forkable: Forkable) -> None:
    """From now on `forkable.after_fork_in_child()` is called in every forked child, while it lives."""
    _forkables.add(forkable)


def bury(thing: Any) -> None:
    """Make an object, and all that it refers to, immortal.

    Closing or merely finalizing an inherited connection would end the parent's session, and the
    interpreter finalizes module globals at exit. A reference that nobody owns is never given back.
    """
    Py_INCREF(thing)  # of _ctypes: ctypes itself would cost every worker another 0.1 MB


def close_quietly(descriptors: list[int]) -> None:
    """Close inherited descriptors without a byte being sent."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:  # the parent closed it in the instant of the fork
            continue


def _forget_half_imported() -> None:
    """Drop modules that another thread was importing at the fork: here nobody finishes them.

    Without this a child finds them in sys.modules, half empty, for ever, or waits for ever for the lock of
    a thread that does not exist here. Only what mppool imports where it is first used.
    """
    locks = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
    for name, module in list(sys.modules.items()):
        specification = getattr(module, "__spec__", None)
        if name.partition(".")[0] in _IMPORTED_LATE and getattr(
            specification, "_initializing", False
        ):
            sys.modules.pop(name, None)
            locks.pop(name, None)


def _after_fork_in_child() -> None:
    _forget_half_imported()
    for forkable in list(_forkables):
        forkable.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
