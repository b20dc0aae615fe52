"""A WSGI application for readiness probes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication

    from mppool.base_manager import Manager

__all__ = ["health"]


def health(manager: Manager) -> WSGIApplication:
    """An application that answers with `manager.health()` as JSON: 200, or 503 where it is "down".

    "degraded" is 200: a pool that is full, or that lives on what it has open, still serves. Nothing is opened, no
    server is started. Where the server does not answer that takes 5 seconds.
    """

    def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer 200 with the health as JSON, or 503 where that is "down"."""
        found = manager.health()
        body = json.dumps(found).encode()
        status = "503 Service Unavailable" if found["status"] == "down" else "200 OK"
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response(status, headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    return application
