"""A process of one machine: so many threads of it use the pool, as it is told on its standard input.

python -m tests.machines.worker DIRECTORY REDIS SESSIONS CAP [end_expired] [budget]
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import psycopg

from mppool import PoolManager
from mppool.errors import PoolError
from mppool.psycopg import PsycopgRecipe
from tests.processes.witness import SessionRecipe

MOST = 8


def main(directory: str, redis: str, sessions: str, cap: str, *more: str) -> None:
    manager = PoolManager(
        "shop",
        runtime_dir=directory,
        redis=redis,
        linger=0.2,
        end_expired="end_expired" in more,
    )
    is_postgresql = sessions.startswith("host=")
    recipe: Any = PsycopgRecipe(sessions) if is_postgresql else SessionRecipe(sessions)
    budget = manager.budget("db", int(cap)) if "budget" in more else None
    names = ("orders", "reports") if budget else ("orders",)
    pools = [manager.pool(name, recipe, max_size=int(cap), budget=budget) for name in names]
    busy = [0]

    def use(number: int) -> None:
        while True:
            if number >= busy[0]:
                time.sleep(0.02)
                continue
            try:
                with pools[number % len(pools)].checkout(timeout=2.0) as session:
                    if is_postgresql:
                        session.execute("select 1")
                    else:
                        session.ask()
                    time.sleep(0.02)
            except (PoolError, OSError, psycopg.Error):
                time.sleep(0.02)  # no share, or its session was ended under it

    for number in range(MOST):
        threading.Thread(target=use, args=(number,), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        busy[0] = int(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
