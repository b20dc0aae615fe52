"""Tracebacks of interrupted checkouts and releases: they must not keep resources alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

_OURS = frozenset({"mppool.worker", "mppool.link", "mppool.process", "mppool.tokens", "mppool.aio"})
"""Packages whose frames hold resources, grants, and tickets."""


def forget_frames(error: BaseException) -> None:
    """Clear the local variables of our own frames in the traceback, which refer to resources."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        pending += [current.__cause__, current.__context__]
        trace: TracebackType | None = current.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__package__") in _OURS:
                try:
                    trace.tb_frame.clear()
                except RuntimeError:
                    pass  # it is still running
            trace = trace.tb_next
