"""Whether the current thread is inside a hook of a recipe.

A hook may use the pool itself. What it checks out is opened in its own thread then, so that a hook which keeps itself
from calling itself, by something that belongs to its thread, can do so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Depth(threading.local):
    """How many hooks the thread is in."""

    value = 0


_depth = _Depth()


def is_inside() -> bool:
    """Whether this thread is inside a hook."""
    return _depth.value > 0


def enter() -> None:
    """A hook is about to be called in this thread, in a way that `run` does not allow."""
    _depth.value += 1


def leave() -> None:
    """That hook has ended."""
    _depth.value -= 1


def run(hook: Callable[[T], R], argument: T) -> R:
    """Call a hook."""
    _depth.value += 1
    try:
        return hook(argument)
    finally:
        _depth.value -= 1
