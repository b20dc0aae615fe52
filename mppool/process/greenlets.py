"""Libraries that put greenlets in the place of threads: gevent is supported, eventlet is not."""

from __future__ import annotations

import sys

from mppool.errors import ConfigurationError


def check_no_eventlet(manager: str) -> None:
    """Raises ConfigurationError where eventlet has patched the standard library.

    It takes poll() and epoll() away, and turns locks that finalizers and forks rely on into its own.
    """
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and any(map(patcher.is_monkey_patched, ("select", "socket", "thread"))):
        raise ConfigurationError(
            f"manager {manager!r}: mppool does not work where eventlet has patched the standard library (it takes "
            "select.poll away, and is not developed any more): use gevent, or workers with threads"
        )
