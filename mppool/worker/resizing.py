"""New bounds for a pool, checked before anybody is told."""

from __future__ import annotations

from typing import Any

from mppool.core.events import Resize
from mppool.options import checked_options


class _Unchanged:
    """A bound that a resize does not name."""

    def __repr__(self) -> str:
        return "unchanged"


UNCHANGED: Any = _Unchanged()


def resize_of(pool: str, max_size: int | None, min_size: int) -> Resize:
    """The event for new bounds; UNCHANGED: not this one. Raises ConfigurationError."""
    given = {
        name: value
        for name, value in (("max_size", max_size), ("min_size", min_size))
        if value is not UNCHANGED
    }
    # What is not given is not compared with: another process may have changed it since.
    checked = checked_options(pool, {"max_size": None, **given})
    return Resize(
        pool,
        checked.max_size,
        "max_size" in given,
        checked.min_size if "min_size" in given else None,
    )
