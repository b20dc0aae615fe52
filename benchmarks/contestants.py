"""What lends connections under a load: mppool, pools that every process has for itself, and plain semaphores.

A contestant is a context, made before the processes are forked. It gives a function that each process calls to
join, with its share of the connections in a static split; that function gives a `Lender`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.load import Witness, fork, private_manager
from benchmarks.peers import SQLALCHEMY, Connection, dummy_of_psycopg
from mppool import CheckoutTimeout, InProcessManager, Pool

SHARED, IN_PROCESS, PSYCOPG = "mppool", "mppool, in process", "psycopg_pool"
SPLIT, BARE = "static split", "semaphore and list"
KEPT, FRESH = "BoundedSemaphore, kept open", "BoundedSemaphore, reopened"
ONE_EACH = "a connection for each thread"


@dataclass(frozen=True)
class Lender:
    """take: seconds to wait (None: for ever) -> a connection, or None if there was none in time."""

    take: Callable[[float | None], Any]
    give_back: Callable[[Any], None]


Join = Callable[[int], Lender]


@dataclass(frozen=True)
class Setting:
    """What is lent: `cap` connections in all, opened as the witness says; further options are of mppool's pools."""

    witness: Witness
    cap: int
    options: dict[str, Any]


Contestant = Callable[[Setting], "contextlib.AbstractContextManager[Join]"]


# --- mppool ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def shared(setting: Setting) -> Iterator[Join]:
    """One pool of all processes, over a server that runs already."""
    with private_manager() as manager:
        pool = _pool_of(manager, setting, setting.cap)
        manager.start()
        yield lambda _: _lender_of(pool)


@contextlib.contextmanager
def in_process(setting: Setting) -> Iterator[Join]:
    """A pool for every process, without a server."""
    yield lambda share: _lender_of(_pool_of(InProcessManager(), setting, share))


def _pool_of(manager: Any, setting: Setting, size: int) -> Pool[Any]:
    witness = setting.witness
    pool: Pool[Any] = manager.pool(
        "lent", witness.open, close=witness.close, max_size=size, **setting.options
    )
    return pool


def _lender_of(pool: Pool[Any]) -> Lender:
    def take(timeout: float | None) -> Any:
        try:
            return pool.checkout(timeout)
        except CheckoutTimeout:
            return None

    return Lender(take, lambda lease: lease.release())


# --- others ---------------------------------------------------------------------------------------------------


class _Witnessed(Connection):
    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        witness.open()

    def close(self) -> None:
        self._witness.close(self)


@contextlib.contextmanager
def sqlalchemy(setting: Setting) -> Iterator[Join]:
    """SQLAlchemy's QueuePool in every process, without overflow and without a reset."""
    from sqlalchemy.exc import TimeoutError as NothingInTime
    from sqlalchemy.pool import QueuePool

    class Patient(QueuePool):
        """It has one timeout for all; here every thread has its own."""

        own = threading.local()

        @property
        def _timeout(self) -> float:
            return getattr(self.own, "timeout", 3600.0)

        @_timeout.setter
        def _timeout(self, seconds: float) -> None:
            self.own.timeout = seconds

    def join(share: int) -> Lender:
        pool = Patient(
            lambda: _Witnessed(setting.witness),
            pool_size=share,
            max_overflow=0,
            reset_on_return=None,
            use_lifo=True,
        )

        def take(timeout: float | None) -> Any:
            pool._timeout = 3600.0 if timeout is None else timeout
            try:
                return pool.connect()
            except NothingInTime:
                return None

        return Lender(take, lambda taken: taken.close())

    yield join


@contextlib.contextmanager
def psycopg_pool(setting: Setting) -> Iterator[Join]:
    """psycopg_pool in every process, with a dummy in place of its connections. It opens one at a time."""
    from psycopg_pool import ConnectionPool, PoolTimeout

    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    dummy = dummy_of_psycopg()

    class Witnessed(dummy):  # type: ignore[misc, valid-type]
        @classmethod
        def connect(cls, *_: Any, **__: Any) -> Any:
            setting.witness.open()
            return cls()

        def close(self) -> None:
            if not self.closed:
                setting.witness.close(self)
            super().close()

    def join(share: int) -> Lender:
        pool: Any = ConnectionPool(
            connection_class=Witnessed, min_size=0, max_size=share, open=True, timeout=3600.0
        )

        def take(timeout: float | None) -> Any:
            try:
                return pool.getconn(timeout)
            except PoolTimeout:
                return None

        return Lender(take, pool.putconn)

    yield join


@contextlib.contextmanager
def static_split(setting: Setting) -> Iterator[Join]:
    """A pool as people write it, in every process: a semaphore for the bound, a list for what is idle."""
    yield lambda share: _semaphore_and_list(threading.BoundedSemaphore(share), setting.witness)


@contextlib.contextmanager
def semaphore_kept(setting: Setting) -> Iterator[Join]:
    """One semaphore of all processes caps what is in use, not what is open."""
    slots = fork.BoundedSemaphore(setting.cap)
    yield lambda _: _semaphore_and_list(slots, setting.witness)


@contextlib.contextmanager
def semaphore_fresh(setting: Setting) -> Iterator[Join]:
    """One semaphore of all processes, and nothing stays open: the cap holds, every job opens."""
    slots, witness = fork.BoundedSemaphore(setting.cap), setting.witness

    def take(timeout: float | None) -> Any:
        return witness.open() if slots.acquire(timeout=timeout) else None

    def give_back(connection: Any) -> None:
        witness.close(connection)
        slots.release()

    yield lambda _: Lender(take, give_back)


def _semaphore_and_list(slots: Any, witness: Witness) -> Lender:
    idle: list[Any] = []

    def take(timeout: float | None) -> Any:
        if not slots.acquire(timeout=timeout):
            return None
        try:
            return idle.pop()
        except IndexError:
            return witness.open()

    def give_back(connection: Any) -> None:
        idle.append(connection)
        slots.release()

    return Lender(take, give_back)


CONTESTANTS: dict[str, Contestant] = {
    SQLALCHEMY: sqlalchemy,
    PSYCOPG: psycopg_pool,
    SPLIT: static_split,
    BARE: static_split,
    KEPT: semaphore_kept,
    FRESH: semaphore_fresh,
    ONE_EACH: static_split,  # with one thread for each connection
    SHARED: shared,
    IN_PROCESS: in_process,
}


def installed(*names: str) -> tuple[dict[str, Contestant], list[str]]:
    """Those of the named that are installed, and a line for each that is not."""
    needs = {SQLALCHEMY: "sqlalchemy", PSYCOPG: "psycopg_pool"}
    found: dict[str, Contestant] = {}
    missing: list[str] = []
    for name in names:
        try:
            if name in needs:
                __import__(needs[name])
            found[name] = CONTESTANTS[name]
        except ImportError as error:
            missing.append(f"left out: {name} ({error})")
    return found, missing
