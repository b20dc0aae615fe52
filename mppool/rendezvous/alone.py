"""Whether this process pools for itself alone: elsewhere than on Linux, and where MPPOOL_ALONE=1 asks for it."""

from __future__ import annotations

import os
import sys

from mppool.logs import Log

ALONE_VARIABLE = "MPPOOL_ALONE"

log = Log("mppool")
_has_warned = False


def is_alone() -> bool:
    """Whether this process is to pool for itself alone. Said in the log, once."""
    global _has_warned
    asked = os.environ.get(ALONE_VARIABLE, "").strip().lower() not in {
        "",
        "0",
        "no",
        "false",
        "off",
    }
    if sys.platform == "linux" and not asked:
        return False
    if not _has_warned:
        _has_warned = True
        why = (
            f"${ALONE_VARIABLE} is set"
            if asked
            else f"processes share pools on Linux only, and this is {sys.platform}"
        )
        log.warning(
            "%s: PoolManager pools for this process alone, so max_size, waiting and tokens are not shared with other "
            "processes",
            why,
        )
    return True
