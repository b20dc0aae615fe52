"""The application that gunicorn runs in `mppool demo`: also an example of how to use mppool.

gunicorn imports it once, in its master (--preload). The workers that it forks share one pool, and none
of them does anything for that: no hook, no lock, no connection to hand over.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from mppool import PoolManager
from mppool.cli.demo import setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

manager = PoolManager(setting.manager())
database = manager.pool(
    "database",
    setting.recipe(),
    max_size=setting.cap(),
    timeout=setting.TIMEOUT_S,
    placement=setting.placement(),  # "host" with `mppool demo --hosts`
)
query_s = setting.query_s()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a number with itself, by way of the database, and name the worker."""
    number = int(environ["QUERY_STRING"])
    with database.checkout() as connection:
        row = connection.execute("SELECT CAST(? AS INTEGER)", (number,)).fetchone()
        time.sleep(query_s)  # a query that keeps its connection for a while
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Worker", str(os.getpid()))])
    return [str(row[0]).encode()]
