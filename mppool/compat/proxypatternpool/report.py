"""What `Pool.stats()` says."""

from __future__ import annotations

import logging
import time
from collections import Counter
from datetime import datetime
from time import monotonic
from typing import Any

from mppool.compat.proxypatternpool.box import Box
from mppool.compat.proxypatternpool.recipe import Hooks
from mppool.compat.proxypatternpool.register import Register
from mppool.compat.proxypatternpool.settings import Settings

log = logging.getLogger("ppp")

_COUNTS = (
    "ncreated",
    "ncreating",
    "nuses",
    "nborrows",
    "nreturns",
    "ndestroys",
    "nhealth",
    "bad_health",
    "hk_rounds",
    "hk_errors",
    "hc_rounds",
    "hc_errors",
)


def of_pool(
    settings: Settings, hooks: Hooks, register: Register, core_counters: Counter[str]
) -> dict[str, Any]:
    """Configuration, state, objects and counts. Hooks are called with no lock held."""
    available, using, going = register.objects()
    now = monotonic()
    counts = register.counts.copy()
    return {
        **_of_settings(settings),
        "now": time.time(),
        "sem": _of_semaphore(settings, len(using) + going),
        "navail": len(available),
        "nusing": len(using),
        "ntodel": going,
        "running": now - register.started_at,
        "rel_hk_last": register.round_at - now,
        "time_per_hk": register.round_time / max(1, counts["hk_rounds"]),
        "avail": [_of_object(hooks, box, content, now) for box, content in available],
        "using": [_of_object(hooks, box, content, now) for box, content in using],
        "nobjs": len(available) + len(using),
        "nkilled": core_counters["killed"],
        "nrecycled": core_counters["expired_idle"],
        "nwornout": core_counters["worn_out"],
        **{name: counts[name] for name in _COUNTS},
    }


def now_text() -> str:
    """The time of day, for people."""
    return datetime.now().astimezone().isoformat()


def _of_settings(settings: Settings) -> dict[str, Any]:
    return {
        "min_size": settings.min_size,
        "max_size": settings.max_size,
        "max_use": settings.max_use,
        "timeout": settings.timeout,
        "delay": settings.round_delay,
        "max_avail_delay": settings.max_avail_delay,
        "max_using_delay_kill": settings.max_using_delay_kill,
        "max_using_delay_warn": settings.warn_delay,
        "health_freq": settings.health_freq,
    }


def _of_semaphore(settings: Settings, taken: int) -> dict[str, int] | None:
    if not settings.max_size:
        return None
    return {"value": max(0, settings.max_size - taken), "init": settings.max_size}


def _of_object(hooks: Hooks, box: Box, content: Any, now: float) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if hooks.stats is None:
        told["trace"] = hooks.trace(content)
    else:
        try:
            told["stats"] = hooks.stats(content)
        except Exception:
            log.exception("exception in stats")
            told["stats"] = None
    told.update(uses=box.uses, last_get=box.last_get - now, last_ret=box.last_ret - now)
    return told
