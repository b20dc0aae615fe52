"""The other pools, each with the statement that takes a resource and gives it back.

All of them lend a bare object, with no reset and no check, so that only the pools are compared. A peer that
is not installed is left out, with a line saying so.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

FLOOR = "Lock + deque"
SQLALCHEMY = "SQLAlchemy QueuePool"
PROXY_PATTERN_POOL = "ProxyPatternPool"
OURS = "mppool"
FOR_CREDENTIAL = "mppool, credential="


@dataclass(frozen=True)
class Peer:
    """`statement` runs in `namespace`; `cost`: its order of magnitude in µs, for equal times per round."""

    name: str
    statement: str
    namespace: dict[str, Any]
    cost: float


class Connection:
    """As little as pools of DB-API connections ask of a connection."""

    threadsafety = 1
    closed = False

    def close(self) -> None:
        """Nothing is open."""

    def rollback(self) -> None:
        """Nothing is begun."""

    def commit(self) -> None:
        """Nothing is begun."""

    def cursor(self) -> Any:
        """Nobody asks for one."""
        raise NotImplementedError


@contextlib.contextmanager
def warm_peers(size: int) -> Iterator[tuple[list[Peer], list[str]]]:
    """All that are installed, with `size` resources on the shelf of each; and who is missing, and why."""
    peers: list[Peer] = []
    missing: list[str] = []
    with contextlib.ExitStack() as closing:
        for make in (
            _floor,
            _lifo_queue,
            _mppool,
            _mppool_credential,
            _sqlalchemy,
            _ppp,
            _dbutils,
            _psycopg_pool,
        ):
            try:
                peers += make(size, closing)
            except ImportError as error:
                missing.append(f"left out: {make.__doc__} ({error})")
        yield peers, missing


def _floor(size: int, closing: contextlib.ExitStack) -> list[Peer]:
    """the floor: a lock and a deque"""
    things = {"lock": threading.Lock(), "items": deque(object() for _ in range(size))}
    statement = "with lock:\n item = items.pop()\nwith lock:\n items.append(item)"
    return [Peer(FLOOR, statement, things, 0.4)]


def _lifo_queue(size: int, closing: contextlib.ExitStack) -> list[Peer]:
    """queue.LifoQueue"""
    items: queue.LifoQueue[object] = queue.LifoQueue()
    for _ in range(size):
        items.put(object())
    return [Peer("queue.LifoQueue", "items.put(items.get())", {"items": items}, 1.5)]


def _mppool(size: int, closing: contextlib.ExitStack) -> list[Peer]:
    """mppool, over a server in a process of its own"""
    from benchmarks.load import private_manager

    manager = closing.enter_context(private_manager())
    pool = manager.pool("warm", object, max_size=size)
    _take_and_give_back(pool.checkout, size, lambda lease: lease.release())
    things = {"pool": pool}
    return [
        Peer(OURS, "lease = pool.checkout()\nlease.release()", things, 1.0),
        Peer("mppool, with", "with pool.checkout() as item: pass", things, 1.2),
    ]


class _Somebody:
    """A credential whose identity is known without a token, as that of a managed identity is."""

    def mppool_identity(self) -> str:
        return "somebody"

    def get_token(self, *scopes: str, **options: Any) -> Any:
        return SimpleNamespace(token="a token", expires_on=time.time() + 86400)


def _mppool_credential(size: int, closing: contextlib.ExitStack) -> list[Peer]:
    """mppool, for a credential"""
    from benchmarks.load import private_manager
    from mppool import Recipe

    class Things(Recipe[object]):
        token_scope = "a scope"

        def open(self, opening: Any) -> object:
            return object()

    manager = closing.enter_context(private_manager())
    pool = manager.pool("warm", Things(), max_size=size)
    things = {"pool": pool, "me": _Somebody()}
    _take_and_give_back(
        lambda: pool.checkout(credential=things["me"]), size, lambda lease: lease.release()
    )
    statement = "lease = pool.checkout(credential=me)\nlease.release()"
    return [Peer(FOR_CREDENTIAL, statement, things, 1.2)]


def _sqlalchemy(size: int, closing: contextlib.ExitStack) -> list[Peer]:
    """SQLAlchemy"""
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(Connection, pool_size=size, max_overflow=0, reset_on_return=None)
    closing.callback(pool.dispose)
    _take_and_give_back(pool.connect, size, lambda taken: taken.close())
    return [Peer(SQLALCHEMY, "item = pool.connect()\nitem.close()", {"pool": pool}, 6)]


def _ppp(size: int, closing: contextlib.ExitStack) -> list[Peer]:
    """ProxyPatternPool"""
    import ProxyPatternPool

    pool = ProxyPatternPool.Pool(lambda number: object(), max_size=size, min_size=size)
    closing.callback(pool.shutdown, 0.1)
    _take_and_give_back(pool.get, size, pool.ret)
    statement = "item = pool.get()\npool.ret(item)"
    return [Peer(PROXY_PATTERN_POOL, statement, {"pool": pool}, 4)]


def _dbutils(size: int, closing: contextlib.ExitStack) -> list[Peer]:
    """DBUtils"""
    from dbutils.pooled_db import PooledDB

    pool = PooledDB(
        Connection,
        mincached=size,
        maxconnections=size,
        blocking=True,
        reset=False,
        ping=0,
        failures=Exception,
    )
    closing.callback(pool.close)
    statement = "item = pool.connection()\nitem.close()"
    return [Peer("DBUtils PooledDB", statement, {"pool": pool}, 4)]


def _psycopg_pool(size: int, closing: contextlib.ExitStack) -> list[Peer]:
    """psycopg_pool, with a dummy in place of its connections"""
    import psycopg_pool

    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    pool: Any = psycopg_pool.ConnectionPool(
        connection_class=dummy_of_psycopg(), min_size=size, max_size=size, open=True
    )
    closing.callback(pool.close)
    pool.wait(10.0)
    statement = "item = pool.getconn()\npool.putconn(item)"
    return [Peer("psycopg_pool", statement, {"pool": pool}, 8)]


def dummy_of_psycopg() -> Any:
    """What psycopg_pool looks at, without a server."""
    from psycopg.pq import TransactionStatus

    class Dummy:
        def __init__(self) -> None:
            self.pgconn = self
            self.transaction_status = TransactionStatus.IDLE
            self.closed = False

        @classmethod
        def connect(cls, *_: Any, **__: Any) -> Any:
            return cls()

        def close(self) -> None:
            self.closed = True

    return Dummy


def _take_and_give_back(
    take: Callable[[], Any], size: int, give_back: Callable[[Any], Any]
) -> None:
    """Have `size` resources opened."""
    for taken in [take() for _ in range(size)]:
        give_back(taken)
