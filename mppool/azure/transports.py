"""The transports of pooled clients.

A client, and all clients that are derived from it, send through one transport object. While that object
lives somebody may send; when it is garbage nobody can, and what it had open is closed. So a client that the
pool has let go of is never closed under its user.

    client -> Transport -> Wire -> azure-core's own transport, with its connections
    derived clients -^        ^- Clients (strongly: what is open must be known)

A transport has one wire in each process: in a forked child the parent's is marked, and the transport makes
itself a new one, so that a client which was made before the fork works in the child, on connections of its
own (hazard 28).
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from azure.core.pipeline.transport import AsyncHttpTransport, HttpTransport, RequestsTransport

from mppool.azure.lending import GONE
from mppool.errors import StaleLease

if TYPE_CHECKING:
    from collections.abc import Callable


class Home(Protocol):
    """What a pool has in one process: see Clients."""

    @property
    def forked(self) -> bool:
        """Whether this belongs to the parent of this process."""

    def watch(self, transport: Any, wire: Wire, credential: Callable[[], Any] | None) -> None:
        """A transport has opened a wire, which is to be closed when the transport is garbage."""

    def successor(self) -> Home:
        """In a forked child: what the pool has here. Raises StaleLease where the pool is gone."""


class Wire:
    """What a transport has open in one process.

    ended: why nothing is sent over it any more, or "".
    serial: of the credential whose end is its end; 0: none.
    loop: of an asynchronous one; it cannot be used or closed from another.
    """

    __slots__ = ("__weakref__", "clients", "ended", "inner", "loop", "serial")

    def __init__(self, clients: Home, inner: Any, serial: int, loop: Any = None) -> None:
        self.clients = clients
        self.inner = inner
        self.serial = serial
        self.ended = ""
        self.loop = None if loop is None else weakref.ref(loop)

    def close(self) -> None:
        """Close what is open, but for what is in the middle of a request: that closes when it is done."""
        if self.loop is None:
            # Not the transport: it would forget its session under a request that another thread sends.
            self.inner.session.close()
            return
        loop = self.loop()
        if loop is None or loop.is_closed():
            self.abandon()
            return
        try:
            # In one step of the loop: a task would be cancelled where the loop is about to end.
            loop.call_soon_threadsafe(self.abandon)
        except RuntimeError:  # it was closed just now
            self.abandon()

    def abandon(self) -> None:
        """Close without waiting for anything: in the event loop, or when that is over."""
        session, self.inner.session = self.inner.session, None
        connector = getattr(session, "connector", None)
        if connector is not None:
            from aiohttp import BaseConnector

            # The base class's `close` does all that there is to do before it waits for the first time.
            # Without aborting, TLS would want to say goodbye, and be heard.
            next(BaseConnector.close(connector, **_abort(BaseConnector.close)).__await__(), None)


def _abort(close: Callable[..., Any]) -> dict[str, bool]:
    """The option that aborts TLS connections, where this release of aiohttp has it."""
    return {"abort_ssl": True} if "abort_ssl" in inspect.signature(close).parameters else {}


class _Pooled:
    """What both kinds of transports have in common."""

    def __init__(
        self, clients: Home, make: Callable[[], Any], credential: Any, serial: int
    ) -> None:
        """credential: a weak reference to the application's, or None where its end is not the client's."""
        self._make = make
        self._credential = credential
        self._serial = serial
        # A credential that nobody else keeps lives as long as its client, and all that are derived from it.
        self.keeps: Any = None
        self._wires: dict[Home, Wire] = {}
        self.wire = self._wired(clients)

    def _wired(self, clients: Home) -> Wire:
        """The wire of this process. Two threads that want the first one get the same."""
        wire = self._wires.get(clients)
        if wire is None:
            made = Wire(clients, self._make(), self._serial, self._own_loop())
            wire = self._wires.setdefault(clients, made)
            if wire is made:
                clients.watch(self, wire, self._credential)
        return wire

    def _own_loop(self) -> Any:
        return None

    def _usable(self) -> Any:
        """Azure-core's transport of this process. Raises StaleLease where the client was ended."""
        wire = self.wire
        if wire.clients.forked:
            wire = self.wire = self._wired(wire.clients.successor())
        if self._credential is not None and self._credential() is None:
            raise StaleLease(GONE)
        if wire.ended:
            raise StaleLease(wire.ended)
        return wire.inner

    def __reduce__(self) -> Any:
        raise TypeError(
            "a pooled client does not leave its process (it holds connections, and secrets); ask the pool of "
            "the other process"
        )


class Transport(_Pooled, HttpTransport[Any, Any]):
    """Sends through the wire of this process. Users cannot close it: others may use the same client."""

    def send(self, request: Any, **options: Any) -> Any:
        """Send a request and wait for the answer."""
        return self._usable().send(request, **options)

    def open(self) -> None:
        """Nothing: it is opened when it is made."""

    def close(self) -> None:
        """Nothing: the pool does that when nobody can send any more."""

    def __enter__(self) -> Transport:  # noqa: PYI034  # typing.Self is newer than Python 3.10
        return self

    def __exit__(self, *exception: object) -> None:
        return None


class AsyncTransport(_Pooled, AsyncHttpTransport[Any, Any]):
    """The same for clients of azure-core's asynchronous kind, in the event loop that asked for the client."""

    def _own_loop(self) -> Any:
        return asyncio.get_running_loop()

    async def send(self, request: Any, **options: Any) -> Any:
        """Send a request and wait for the answer."""
        inner = self._usable()
        loop = self.wire.loop
        if loop is None or loop() is not asyncio.get_running_loop():
            raise StaleLease(
                "this client was made in another event loop; ask the pool in the loop that uses it"
            )
        return await inner.send(request, **options)

    async def open(self) -> None:
        """Nothing: it opens itself with the first request."""

    async def close(self) -> None:
        """Nothing: the pool does that when nobody can send any more."""

    async def __aenter__(self) -> AsyncTransport:  # noqa: PYI034
        return self

    async def __aexit__(self, *exception: object) -> None:
        return None


def opened(options: dict[str, Any]) -> Any:
    """azure-core's transport over requests, with a session of its own.

    connections: to keep for each host; more than requests keeps by itself (10), or less.
    """
    options = dict(options)
    connections = options.pop("connections", None)
    transport = RequestsTransport(**options)
    transport.open()  # now: two threads that send first would make two sessions
    session: Any = transport.session
    if connections is not None:
        for prefix, old in list(session.adapters.items()):
            kept = {"pool_connections": connections, "pool_maxsize": connections}
            session.mount(prefix, type(old)(max_retries=old.max_retries, **kept))
    return transport


def opened_later(options: dict[str, Any]) -> Any:
    """azure-core's transport over aiohttp, which makes its session with the first request."""
    from azure.core.pipeline.transport import AioHttpTransport

    class OneContext(AioHttpTransport):  # type: ignore[misc]  # azure-core does not say what it is
        """Keeps its TLS context, where it has certificates of its own to trust.

        azure-core 1.41 makes one for each request, and aiohttp reuses no connection that was made with
        another: every request then opens a connection.
        """

        _contexts: dict[Any, Any]
        _connections: int | None

        async def open(self) -> None:
            if not getattr(self, "_has_been_opened", False) and self._connections is not None:
                import aiohttp

                self.session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit_per_host=self._connections),
                    trust_env=self._use_env_settings,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                )
            await super().open()

        def _build_ssl_config(self, cert: Any, verify: Any) -> Any:
            key = (cert, verify)
            if key not in self._contexts:
                self._contexts[key] = super()._build_ssl_config(cert, verify)
            return self._contexts[key]

    options = dict(options)
    connections = options.pop("connections", None)
    made = OneContext(**options)
    made._connections = connections
    made._contexts = {}
    return made
