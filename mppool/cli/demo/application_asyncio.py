"""The application of `mppool demo --asyncio`: an ASGI application, and a pool for event loops."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from mppool import PoolManager
from mppool.cli.demo import setting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

manager = PoolManager(setting.manager())
database = manager.apool(
    "database", setting.async_recipe(), max_size=setting.cap(), timeout=setting.TIMEOUT_S
)
query_s = setting.query_s()


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer a number with itself, by way of the database, and name the worker."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    number = int(scope["query_string"])
    async with database.checkout() as connection:
        cursor = await connection.execute("SELECT CAST(? AS INTEGER)", number)
        row = await cursor.fetchone()
        await cursor.close()
        await asyncio.sleep(query_s)  # a query that keeps its connection for a while
    body = str(row[0]).encode()
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(body)).encode()),
        (b"x-worker", str(os.getpid()).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
