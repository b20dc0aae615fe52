"""What happens to a member in a forked child.

One `os.register_at_fork` for all members. It works for every way to fork: a plain os.fork (gunicorn),
multiprocessing, a double fork. In the child it does almost nothing: it marks the parent's holdings as
forked, makes them immortal, and gives every member new ones. No byte is sent on an inherited connection,
no hook is called, no lock of the parent is taken (its holder may not exist here).
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Protocol


class Forkable(Protocol):
    """Something that must start afresh in a child."""

    def after_fork_in_child(self) -> None:
        """Start afresh. No I/O, no logging, no lock of the parent."""


# Looked up now: in a forked child as little as possible should happen for the first time.
_inc_ref = ctypes.pythonapi.Py_IncRef

_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def renew_in_children(forkable: Forkable) -> None:
    """From now on `forkable.after_fork_in_child()` is called in every forked child, while it lives."""
    _forkables.add(forkable)


def bury(thing: Any) -> None:
    """Make an object, and all that it refers to, immortal.

    Closing or merely finalizing an inherited connection would end the parent's session, and the
    interpreter finalizes module globals at exit. A reference that nobody owns is never given back.
    """
    _inc_ref(ctypes.py_object(thing))


def close_quietly(descriptors: list[int]) -> None:
    """Close inherited descriptors without a byte being sent."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:  # the parent closed it in the instant of the fork
            continue


def _after_fork_in_child() -> None:
    for forkable in list(_forkables):
        forkable.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
