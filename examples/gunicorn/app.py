"""A web application whose workers, however many, share five connections.

The pool is declared at import: with --preload that is in gunicorn's master, else in each worker. Both are
right, and nothing is opened before the first request.
"""

import os
from collections.abc import Callable
from typing import Any

from mppool import CheckoutTimeout, PoolManager
from mppool.odbc import OdbcRecipe

database = os.environ.get("SHOP_DATABASE", "shop.db")
manager = PoolManager("shop")
orders = manager.pool("orders", OdbcRecipe(f"Driver=SQLite3;Database={database}"), max_size=5)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    try:
        with orders.checkout(timeout=5.0) as connection:
            version = connection.execute("select sqlite_version()").fetchval()
    except CheckoutTimeout:
        start_response("503 Service Unavailable", [("Retry-After", "1")])
        return [b"all connections are busy\n"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"SQLite {version}, worker {os.getpid()}\n".encode()]
