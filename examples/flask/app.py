"""A Flask application whose processes share five connections.

flask --app app run --debug        # the reloader: the pool outlives every reload
gunicorn --workers 4 app:app       # four workers, five connections
"""

import os

from flask import Flask

from mppool import CheckoutTimeout, PoolManager
from mppool.odbc import OdbcRecipe

database = os.environ.get("SHOP_DATABASE", "shop.db")
manager = PoolManager("shop")
orders = manager.pool("orders", OdbcRecipe(f"Driver=SQLite3;Database={database}"), max_size=5)

app = Flask(__name__)


@app.get("/")
def version() -> dict[str, str]:
    with orders.checkout(timeout=5.0) as connection:
        return {"sqlite": connection.execute("select sqlite_version()").fetchval()}


@app.get("/pool")
def pool() -> dict[str, object]:
    stats = orders.stats()
    return {name: stats[name] for name in ("max_size", "size", "in_use", "idle", "waiting")}


@app.errorhandler(CheckoutTimeout)
def busy(error: CheckoutTimeout) -> tuple[dict[str, str], int, dict[str, str]]:
    return {"error": "all connections are busy"}, 503, {"Retry-After": "1"}
