"""Watching where a host name points to: when it points elsewhere, connections move there at a pace.

    from mppool import endpoints

    endpoints.watch(orders, "db.example.com")

After a failover, or the move of a database to another machine, its name has other addresses, while connections stay where
they are until somebody closes them. With this the pool begins a generation then: what is open is replaced, spread over
a minute, and is lent as always until it is its turn. (Where the old machine is dead the pool notices by itself.)
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from mppool.core.events import Reset
from mppool.errors import ConfigurationError, PoolError
from mppool.logs import Log
from mppool.options import checked_over
from mppool.worker.inventory import NEVER

if TYPE_CHECKING:
    from mppool.aio.pool import AsyncPool
    from mppool.worker.pool import Pool

__all__ = ["Watch", "watch"]

log = Log("mppool")

_MOST_TOLD = 4


def watch(
    pool: Pool[Any] | AsyncPool[Any],
    host: str,
    *,
    port: int | str | None = None,
    interval: float = 30.0,
    over: float = 60.0,
) -> Watch:
    """Look where a host name points to, and replace what is open when it points elsewhere.

    Call it where the pool is declared; children inherit it. It costs nothing while a process has nothing open. Of many
    processes that see the same change the first begins the generation, for all.

    host, port: as for `socket.getaddrinfo`.
    interval: seconds between two looks of a process, which take a thread for as long as the resolver takes.
    over: seconds over which the replacing is spread; 0: at once.

    An answer that shares an address with the one before is no change, for many names have more addresses than an
    answer holds; nor is an error of the resolver. Raises ConfigurationError for bad values.
    """
    if not isinstance(host, str) or not host:
        raise ConfigurationError(f"host={host!r:.80} is not allowed: give the name of a host")
    seconds = checked_over(pool.name, over)
    if isinstance(interval, bool) or not isinstance(interval, (int, float)) or not interval > 0:
        raise ConfigurationError(
            f"interval={interval!r:.80} is not allowed: give a number of seconds above 0"
        )
    made = Watch(pool._local, host, port, float(interval), seconds)
    made.begin()
    return made


class Watch:
    """Made by `watch`. In each process it is looked at by the background thread, and resolves in another one.

    addresses: as the resolver said last; empty before the first look. Written by one chore at a time.
    """

    def __init__(
        self, local: Any, host: str, port: int | str | None, interval: float, over: float
    ) -> None:
        self.host = host
        self.addresses: frozenset[str] = frozenset()
        self._local = local
        self._port = port
        self._interval = interval
        self._over = over
        self._due = 0.0
        self._stopped = True

    def begin(self) -> None:
        """Go on, after `stop`."""
        self._stopped = False
        self._local.keepers = (*self._local.keepers, self)

    def stop(self) -> None:
        """Look no longer, in this process. What a look under way finds is not used any more."""
        self._stopped = True
        self._local.keepers = tuple(one for one in self._local.keepers if one is not self)

    # --- see worker.context.Keeper ------------------------------------------------------------------------

    def look(self, now: float) -> float:
        """Have the name resolved, where that is due; when to look again."""
        if not self._local.entries():
            return NEVER  # the next opening asks for the next look
        if now >= self._due:
            self._due = now + self._interval
            self._local.member.chores.add(self._resolve)
        return self._due

    def is_over(self) -> bool:
        """See `stop`."""
        return self._stopped

    def _resolve(self) -> None:
        try:
            found = socket.getaddrinfo(self.host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            log.debug("pool %r: %s could not be resolved: %s", self._local.name, self.host, error)
            return
        addresses = frozenset(str(one[4][0]) for one in found)
        before = self.addresses
        if self._stopped:
            return
        if not before or not addresses or before & addresses:
            self.addresses = addresses or before
            return
        told = ", ".join(sorted(addresses)[:_MOST_TOLD])
        log.info(
            "pool %r: %s is at %s now; what is open is replaced over %g s",
            self._local.name,
            self.host,
            told,
            self._over,
        )
        because = f"{self.host} is at {' '.join(sorted(addresses))}"
        try:
            self._local.member.link.command(Reset(self._local.name, self._over, because))
        except (PoolError, OSError) as error:
            # It is still what it was before, so the next look sees the change once more.
            log.warning("pool %r: it could not be told to be replaced: %s", self._local.name, error)
        else:
            self.addresses = addresses
