"""Whether pools can serve, as readiness probes ask: read from statistics, nothing is opened. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

from mppool.errors import PoolError

Status = Literal["ok", "degraded", "down"]

_GRAVITY: tuple[Status, ...] = ("ok", "degraded", "down")


class Health(TypedDict):
    """Of a pool. status: "ok", "degraded" (it serves, but look at it) or "down". reasons: empty where it is ok."""

    status: Status
    reasons: list[str]


class ManagerHealth(Health):
    """Of a manager: the worst of its pools, and each pool's own."""

    pools: dict[str, Health]


def _of_pool(pool: Mapping[str, Any]) -> Health:
    """Of a pool, from its statistics."""
    if pool["closed"]:
        return {"status": "down", "reasons": ["it is closed in all processes"]}
    settled = pool["in_use"] + pool["idle"]
    if pool["breaker"] != "closed" and not settled:
        return {"status": "down", "reasons": ["nothing is open, and opening fails at present"]}
    reasons = []
    if pool["breaker"] != "closed":
        reasons.append(f"opening fails at present; {settled} that are open still serve")
    share = pool.get("share")
    cap, whose = (pool["max_size"], "") if share is None else (share, " of this machine's share")
    if pool["waiting"] and cap is not None and pool["size"] >= cap:
        reasons.append(f"all {cap}{whose} are taken, and {pool['waiting']} wait")
    silent = [str(one["pid"]) for one in pool["processes"] if one["stale"] and one["slots"]]
    if silent:
        reasons.append(f"processes that hold some do not answer: {', '.join(silent)}")
    return {"status": "degraded" if reasons else "ok", "reasons": reasons}


def _of_lease(machines: Mapping[str, Any] | None) -> Health:
    """Of what this machine may have, where machines share caps."""
    if machines is None or not machines["trouble"]:
        return {"status": "ok", "reasons": []}
    reason = f"Redis gives no lease at present: {machines['trouble']}"
    holds = machines["phase"] in ("leased", "fading") or machines["on_redis_lost"] != "hold"
    return {"status": "degraded" if holds else "down", "reasons": [reason]}


def _of_manager(stats: Mapping[str, Any]) -> ManagerHealth:
    """Of a manager, from its statistics. No server is no fault: the next checkout that needs one starts it."""
    pools = {name: _of_pool(pool) for name, pool in stats["pools"].items()}
    lease = _of_lease(stats.get("machines"))
    found = [one["status"] for one in (*pools.values(), lease)]
    worst = max(found, key=_GRAVITY.index)
    reasons = [f"{name}: {reason}" for name, one in pools.items() for reason in one["reasons"]]
    reasons += lease["reasons"]
    return {"status": worst, "reasons": reasons, "pools": pools}


def asked(stats: Callable[[], Mapping[str, Any]]) -> ManagerHealth:
    """Of a manager; where its server does not answer it is down."""
    try:
        return _of_manager(stats())
    except (PoolError, TimeoutError) as error:
        return {"status": "down", "reasons": [str(error)], "pools": {}}
