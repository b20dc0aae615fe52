"""A WSGI application whose sessions a witness counts. Settings come from the environment, as in containers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from mppool import PoolManager
from tests.integrations.witness import WitnessRecipe

setting = os.environ.get
manager = PoolManager(setting("APP_MANAGER", "shop"), linger=float(setting("APP_LINGER", "0.5")))
pool = manager.pool(
    "orders",
    WitnessRecipe(os.environ["WITNESS"], setting("APP_DATABASE", "main")),
    max_size=int(setting("APP_CAP", "2")),
    min_size=int(setting("APP_MIN_SIZE", "0")),
    timeout=float(setting("APP_TIMEOUT", "15")),
)

if setting("APP_USE_AT_IMPORT"):
    with pool.checkout() as session:
        session.ask()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    action = ACTIONS[environ["PATH_INFO"]]
    body = json.dumps({"pid": os.getpid(), **action()}).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]


def use() -> dict[str, Any]:
    with pool.checkout() as session:
        session.ask()
        time.sleep(0.005)
        session.ask()
    return {"database": session.database}


def quick() -> dict[str, Any]:
    """Only what can be had without waiting."""
    opened = pool.stats()["counters"]["opened"]
    with pool.checkout(timeout=0) as session:
        session.ask()
    return {"opened_before": opened, "opened": pool.stats()["counters"]["opened"]}


def fill() -> dict[str, Any]:
    """The whole capacity at once, in one process: nothing of it is lost."""
    leases = [pool.checkout() for _ in range(pool.stats()["max_size"])]
    for lease in leases:
        lease.resource.ask()
        lease.release()
    return {"leases": len(leases)}


def hang() -> dict[str, Any]:
    with pool.checkout():
        threading.Event().wait()
    return {}


def stuck() -> dict[str, Any]:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGABRT])
    return hang()


def linger_in_use() -> dict[str, Any]:
    with pool.checkout() as session:
        time.sleep(0.5)
        session.ask()
    return {}


def look() -> dict[str, Any]:
    stats = manager.stats()
    return {
        "server": manager.server_pid,
        "threads": [thread.name for thread in threading.enumerate()],
        "labels": sorted(one["label"] for one in stats["processes"]),
        "version": setting("APP_VERSION"),
        "stats": stats,
    }


def crash() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


ACTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "/use": use,
    "/quick": quick,
    "/fill": fill,
    "/hang": hang,
    "/stuck": stuck,
    "/slow": linger_in_use,
    "/look": look,
    "/crash": crash,
}
