"""The application of `mppool demo --sqlalchemy`: an engine whose connections all workers share."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, text

from mppool import PoolManager
from mppool.cli.demo import setting
from mppool.integrations.sqlalchemy import shared_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

manager = PoolManager(setting.manager())
engine = create_engine(
    setting.url(),
    connect_args=setting.connect_args(),
    poolclass=shared_pool(manager, "database"),
    pool_size=setting.cap(),
    max_overflow=0,
    pool_timeout=setting.TIMEOUT_S,
)
query_s = setting.query_s()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a number with itself, by way of the database, and name the worker."""
    number = int(environ["QUERY_STRING"])
    with engine.connect() as connection:
        answer = connection.execute(text("SELECT CAST(:number AS INTEGER)"), {"number": number})
        found = answer.scalar_one()
        time.sleep(query_s)  # a query that keeps its connection for a while
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Worker", str(os.getpid()))])
    return [str(found).encode()]
