"""A Django application in one file whose processes share five connections beside Django's own.

    python shop.py runserver                  # the reloader: the pool outlives every reload
    gunicorn --workers 4 shop:application     # four workers, five connections

In a project of the usual size the two lines that declare the pool go into a module of their own.
"""

import os
import sys

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from mppool import CheckoutTimeout, PoolManager
from mppool.odbc import OdbcRecipe

database = os.environ.get("SHOP_DATABASE", "shop.db")
manager = PoolManager("shop")
orders = manager.pool("orders", OdbcRecipe(f"Driver=SQLite3;Database={database}"), max_size=5)

settings.configure(
    DEBUG=True,
    SECRET_KEY=os.environ.get("SHOP_SECRET_KEY", "for this example only"),
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
)


def version(request: HttpRequest) -> JsonResponse:
    try:
        with orders.checkout(timeout=5.0) as connection:
            found = connection.execute("select sqlite_version()").fetchval()
    except CheckoutTimeout:
        return JsonResponse({"error": "all connections are busy"}, status=503)
    return JsonResponse({"sqlite": found})


def pool(request: HttpRequest) -> JsonResponse:
    stats = orders.stats()
    return JsonResponse(
        {name: stats[name] for name in ("max_size", "size", "in_use", "idle", "waiting")}
    )


urlpatterns = [path("", version), path("pool", pool)]
application = get_wsgi_application()

if __name__ == "__main__":
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
