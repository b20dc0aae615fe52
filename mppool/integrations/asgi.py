"""An ASGI application for readiness probes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mppool.base_manager import Manager

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

__all__ = ["health"]


def health(manager: Manager) -> Callable[[dict[str, Any], Receive, Send], Awaitable[None]]:
    """The same as `mppool.integrations.wsgi.health`, for ASGI under asyncio. The server is asked in a thread."""

    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer 200 with the health as JSON, or 503 where that is "down"."""
        if scope["type"] == "lifespan":  # where it is the only application
            await _live(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the health of pools is told over http, not {scope['type']}")
        found = await asyncio.to_thread(manager.health)
        body = json.dumps(found).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 503 if found["status"] == "down" else 200,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", str(len(body)).encode()),
                    (b"cache-control", b"no-store"),
                ],
            }
        )
        is_head = scope["method"] == "HEAD"
        await send({"type": "http.response.body", "body": b"" if is_head else body})

    return application


async def _live(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})
