"""An application for uwsgi: each request holds a resource that is a file, so that anybody can count them.

EARLY: what is done with the pool where the application is loaded, before uwsgi forks: "", "use" or "hold".
/hold takes the only resource of another pool for good, and /ask asks for it in vain.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mppool import PoolManager

OPEN = Path(os.environ["OPEN_DIRECTORY"])
MAX_SIZE = 2


class Thing:
    """A file while it is open, named by the process that opened it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.path = OPEN / f"{self.pid}-{time.monotonic_ns()}-{id(sys.modules)}"
        self.path.touch()

    def close(self) -> None:
        self.path.unlink()


if os.environ.get("PRETEND_EXECUTABLE"):
    sys.executable = os.environ["PRETEND_EXECUTABLE"]
manager = PoolManager("shop", linger=0.2)
pool = manager.pool("orders", Thing, max_size=MAX_SIZE)
if os.environ.get("EARLY") == "use":
    with pool.checkout(timeout=20):
        pass
elif os.environ.get("EARLY") == "hold":
    held = pool.checkout(timeout=20)


alone = manager.pool("alone", object, max_size=1)
kept: list[Any] = []


def _alive(name: str) -> bool:
    try:
        os.kill(int(name.partition("-")[0]), 0)
    except ProcessLookupError:
        return False
    return True


def worker_number() -> int:
    """As uwsgi counts its workers. Its module exists in its processes only."""
    return int(sys.modules["uwsgi"].worker_id())


def answer(path: str) -> dict[str, Any]:
    try:
        if path == "/hold":
            kept.append(alone.checkout(timeout=10, label="for good"))
            return {"pid": os.getpid(), "number": worker_number()}
        if path == "/ask":
            alone.checkout(timeout=0)
        with pool.checkout(timeout=10) as thing:
            time.sleep(0.01)
            opened = sum(map(_alive, os.listdir(OPEN)))
            labels = {one["pid"]: one["label"] for one in manager.stats()["processes"]}
            return {
                "pid": os.getpid(),
                "of": thing.pid,
                "open": opened,
                "number": worker_number(),
                "label": labels[os.getpid()],
            }
    except Exception as error:
        return {"pid": os.getpid(), "error": f"{type(error).__name__}: {error}"}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = json.dumps(answer(environ["PATH_INFO"])).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]
