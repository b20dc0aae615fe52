"""Pools of clients that threads share: one per credential and target, gone when they should be.

A ClientPool is what applications hold. What it has in this process is a `Clients`; a forked child starts
with a new one, and the parent's is made immortal: nothing in it is closed, or finalized, in the child.
"""

from __future__ import annotations

from sys import getrefcount
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mppool.azure.client_table import Clients
from mppool.azure.keys import Asked, checked_number, checked_ttl, configured_ttl
from mppool.azure.report import stats
from mppool.azure.temporary import UNKEPT
from mppool.errors import ConfigurationError
from mppool.options import checked_name
from mppool.process.fork import make_immortal, notice_fork, renew_in_children

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mppool.worker.member import Member

C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)

MAX_CLIENTS = 256

RESET = "this client is closed: its pool was reset after it had handed the client out; ask the pool for a new one"


class Factory(Protocol[C_co]):
    """Makes a client. Called by one thread at a time for each credential and target, never under a lock.

    credential: to give to the client; for token credentials one that does not keep the application's alive.
    transport: to give to the client, as azure-core's clients take it; other clients may ignore it.
    """

    def __call__(self, target: str, *, credential: Any, transport: Any) -> C_co:
        """A client for the target."""


class ClientPool(Generic[C]):
    """One client per (credential, target) and process, shared by its threads.

    manager: whose tokens the clients use, so that all clients of all processes share them.
    factory: makes a client; see Factory.
    async_factory: the same for `aclient`; None: there is none.
    name: for statistics and messages.
    idle_ttl: seconds after which a client that nobody has asked for is let go; None: 1800.
    transport_options: for azure-core's transport (`connection_verify`, `connection_timeout`,
        `read_timeout`, `proxies`, ...).
    connections: HTTP connections to keep for each host; None: azure-core's own number (10; 100 in asyncio).
    max_clients: beyond so many, those that were not asked for in the longest time are let go.

    The pool refers to credentials weakly: the application keeps them. When one is garbage-collected, its
    clients are closed and forgotten; a client that somebody still holds then raises StaleLease. A credential
    that nobody keeps when it is given (`pool.client(Credential(), ...)`) lives as long as the client, which is the
    caller's alone then. Clients with keys and signatures share the connections of their target.
    A client belongs to the pool: closing it, or leaving its `with` block, closes nothing.
    """

    def __init__(
        self,
        manager: Any,
        factory: Factory[C],
        *,
        async_factory: Factory[Any] | None = None,
        name: str = "clients",
        idle_ttl: float | None = None,
        transport_options: dict[str, Any] | None = None,
        connections: int | None = None,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        self.manager = manager
        self.factory = factory
        self.async_factory = async_factory
        self.name = checked_name("client pool", name)
        self.idle_ttl = checked_ttl(idle_ttl)
        self.transport_options = dict(transport_options or {})
        if connections is not None:
            self.transport_options["connections"] = checked_number("connections", connections)
        self.max_clients = checked_number("max_clients", max_clients)
        if getattr(manager, "_member", None) is None:
            kind = type(self).__name__
            raise ConfigurationError(
                f"{kind}({manager!r:.80}) is not allowed: give a manager, for instance "
                f"{kind}(PoolManager('shop'))"
            )
        self._member: Member = manager._member
        self.clients = Clients(self, self._member)
        renew_in_children(self)

    def after_fork_in_child(self) -> None:
        """This process starts with none; what the parent has open is never closed here."""
        parents = self.clients
        make_immortal(parents)
        self.clients = Clients(self, self._member)

    def client(self, credential: Any, account: str) -> C:
        """The client for this credential and account; made if there is none, by one thread.

        credential: a token credential, AzureNamedKeyCredential, AzureSasCredential, or a key or SAS as str.
        account: the target that the factory is given.
        Raises ConfigurationError for anything but a credential, and what the factory raises.
        """
        notice_fork()
        clients = self.clients
        shortcut = (credential if type(credential) is str else id(credential), account)
        if not clients.notes:
            try:
                known = clients.shortcuts.get(shortcut)
            except TypeError:
                known = None  # a target that is not a text; the slow way says so
            if known is not None and (known[0]() is credential or type(credential) is str):
                entry = known[1]
                entry.used_at = monotonic()
                entry.uses = entry.next_use()
                found: C = entry.client
                return found
        temporary = getrefcount(credential) <= UNKEPT  # in this frame, and before it is passed on
        asked = Asked(credential, self.target_of(account), temporary=temporary)
        made: C = self._client(
            asked, shortcut if asked.can_be_shortened or type(credential) is str else None
        )
        return made

    def client_of_its_own(self, credential: Any, account: str) -> C:
        """A client that is the caller's alone, and keeps the credential, which nobody else does."""
        made: C = self._client(Asked(credential, self.target_of(account), temporary=True), None)
        return made

    def aclient(self, credential: Any, account: str) -> Any:
        """The asynchronous client, for the event loop that is running. Raises as `client` does."""
        temporary = getrefcount(credential) <= UNKEPT
        return self._aclient(credential, account, temporary)

    def _aclient(self, credential: Any, target: str, temporary: bool) -> Any:
        asked = Asked(credential, self.target_of(target), asynchronous=True, temporary=temporary)
        return self._client(asked, None)

    def _client(self, asked: Asked, shortcut: Hashable | None) -> Any:
        while True:
            clients = self.clients
            clients.take_notes()
            if clients.closing:
                self._member.chores.add(clients.close_unused)
            entry = clients.entries.get(asked.key) or clients.build(self, asked)
            if entry is not None and not clients.is_right_for(entry, asked):
                asked.becomes_its_own()
                continue
            if entry is not None:
                entry.used_at = monotonic()
                entry.uses = entry.next_use()
                if shortcut is not None and not asked.temporary:
                    clients.shorten(shortcut, asked, entry)
                return entry.client

    def factory_of(self, asked: Asked) -> Factory[Any]:
        """What makes such a client. Raises ConfigurationError where there is nothing."""
        if not asked.asynchronous:
            return self.factory
        if self.async_factory is None:
            raise ConfigurationError(f"client pool {self.name!r} was made without async_factory")
        return self.async_factory

    def target_of(self, target: str) -> str:
        """What is one target, however it is written, is one text."""
        return target

    def effective_ttl(self) -> float:
        """Seconds. Raises ConfigurationError for a setting that is none."""
        return configured_ttl(self.idle_ttl, "")

    def prune_idle(self, idle_ttl: float | None = None) -> int:
        """Let go of the clients that nobody has asked for in `idle_ttl` seconds; how many.

        idle_ttl: None: the pool's own. 0: all of them.
        A caller that holds one may go on with it; its connections are closed when nobody can use them any more.
        """
        seconds = checked_ttl(idle_ttl)
        clients = self.clients
        clients.take_notes()
        number = clients.retire_idle(
            self.effective_ttl() if seconds is None else seconds, monotonic()
        )
        clients.take_notes()
        clients.close_unused()
        return number

    def reset(self) -> None:
        """Close and forget everything in this process; clients that are held raise StaleLease from now on."""
        ended = self.clients
        self.clients = Clients(self, self._member)
        ended.end(RESET)

    def stats(self) -> dict[str, Any]:
        """Figures of this process, in the shape of `Pool.stats()`; JSON-compatible, without secrets."""
        return stats(self.name, self.clients)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.manager!r}>"
