"""Out of the reach of signals: exceptions of their handlers (Ctrl-C, a time-out) strike the main thread only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def shielded(function: Callable[[], T]) -> T:
    """Call it in a thread of its own, where no exception of a signal handler can strike.

    What filelock keeps for forks is guarded by locks of the whole process: struck there, by Ctrl-C or a
    time-out, it would leave them locked, and no thread could start a server any more. Where the caller is
    interrupted, the thread goes on to its end without it.
    """
    outcome: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="mppool-start", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there can be no more threads, as at the end of an interpreter
        return function()
    thread.join()
    result, error = outcome.pop()
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
