"""Engines over hosts: `create_engine(url, poolclass=shared_pool(manager, "shop", placement="host"))`.

    engine.connect() -> SharedHostedPool -> mppool's checkout -> HostedRecord -> SQLAlchemy's fairy
                                                 |
                                                 v  in the host: HostedEngineRecipe connects as the engine's dialect does

A record lives as long as one lease. What a dialect does to each new connection is done in the host. The application's own
`connect` hooks run here, over the proxy, once in each process for each connection of the host.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import exc, util
from sqlalchemy.pool.base import _ConnectionRecord

from mppool.dbapi.sessions import cancel
from mppool.errors import ConfigurationError, PoolError, StaleLease
from mppool.integrations.sqlalchemy import opening
from mppool.integrations.sqlalchemy.pool import SharedPool
from mppool.integrations.sqlalchemy.record import inherited_safely
from mppool.logs import Log
from mppool.odbc import driver_manager
from mppool.recipe import Opening, Recipe

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

log = Log("mppool.sqlalchemy")

_PLAIN = (type(None), bool, int, float, str)
_OPTIONS_WITH_FUNCTIONS = ("json_serializer", "json_deserializer")
_MOST_SEEN = 10_000


class OfTheDialect:
    """Stands for an attribute of the dialect among the arguments of a connection: each process has its own."""

    def __init__(self, name: str) -> None:
        self.name = name


class HostedEngineRecipe(Recipe[Any]):
    """Opens in a host what an engine connects to, and prepares it as its dialect does."""

    may_be_replaced = False
    """In silence: hooks of the application have prepared it from a worker."""

    def __init__(
        self,
        fingerprint: str,
        dialect: tuple[type, dict[str, Any], dict[str, Any]],
        connect: tuple[Callable[[], Any] | None, tuple[Any, ...], dict[str, Any]],
        configure: Callable[[Any], None] | None,
    ) -> None:
        """dialect: its class, arguments and plain attributes. connect: the application's creator, or arguments."""
        self._fingerprint = fingerprint
        self._said_of_dialect = dialect
        self._connect = connect
        self._configure = configure
        self._made: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return HostedEngineRecipe, (
            self._fingerprint,
            self._said_of_dialect,
            self._connect,
            self._configure,
        )

    @property
    def _dialect(self) -> Any:
        if self._made is None:
            kind, arguments, attributes = self._said_of_dialect
            made: Any = kind(dbapi=kind.import_dbapi(), **arguments)  # type: ignore[attr-defined]
            vars(made).update(attributes)
            self._made = made
        return self._made

    def open(self, opening: Opening) -> Any:
        """Connect, and prepare. Raises the driver's error."""
        dialect = self._dialect
        if dialect.driver == "pyodbc":
            driver_manager.load()  # the driver manager's own pooling is off before the first connection
        creator, arguments, keywords = self._connect
        if creator is not None:
            connection = creator()
        else:
            own = {
                name: getattr(dialect, value.name) if isinstance(value, OfTheDialect) else value
                for name, value in keywords.items()
            }
            connection = dialect.connect(*arguments, **own)
        try:
            for prepare in (dialect.on_connect(), self._configure):
                if prepare is not None:
                    prepare(connection)
        except BaseException:
            dialect.do_close(connection)
            raise
        return connection

    def check(self, connection: Any) -> bool:
        """The dialect's ping. ConnectionError if the session is dead."""
        if self._dialect._do_ping_w_event(connection):
            return True
        raise ConnectionError("the session does not answer the dialect's ping")

    def reset(self, connection: Any) -> None:
        """Roll back what a worker has left open."""
        self._dialect.do_rollback(connection)

    def cancel(self, connection: Any) -> bool:
        """As DbApiRecipe.cancel."""
        return cancel(connection)

    def close(self, connection: Any) -> None:
        """As the dialect does."""
        self._dialect.do_close(connection)

    def describe(self, connection: Any) -> str:
        """Dialect and driver."""
        return f"{self._dialect.name}+{self._dialect.driver}"

    def fingerprint(self) -> str:
        """A keyed hash of what the engine's URL and arguments say."""
        return self._fingerprint


def recipe_for(pool: str, creator: Any, dialect: Any, configure: Any) -> HostedEngineRecipe:
    """What the engine opens, for a host. Raises ConfigurationError where the creator cannot travel."""
    # Looking for hstore's numbers needs the driver's own connection; SQLAlchemy reads it from text then.
    if getattr(dialect, "use_native_hstore", False):
        dialect.use_native_hstore = False
    given = {
        name: value
        for name in _OPTIONS_WITH_FUNCTIONS
        if name in util.get_cls_kwargs(type(dialect))
        and (value := getattr(dialect, f"_{name}", None)) is not None
    }
    plain = {name: value for name, value in vars(dialect).items() if type(value) in _PLAIN}
    arguments, keywords = opening.arguments_of(creator)
    own = None if arguments or keywords else creator
    named = {name: _travelling(value, dialect) for name, value in keywords.items()}
    return HostedEngineRecipe(
        opening.fingerprint_of(creator if own is None else own, dialect),
        (type(dialect), given, plain),
        (own, arguments, named),
        configure,
    )


def _travelling(value: Any, dialect: Any) -> Any:
    try:
        pickle.dumps(value, 5)
    except Exception:  # noqa: BLE001  # whatever it raises: it does not travel
        for name, attribute in vars(dialect).items():
            if attribute is value:
                return OfTheDialect(name)
    return value


class HostedRecord(_ConnectionRecord):
    """SQLAlchemy's record, for one lease. lease: None after its end. was_closed: SQLAlchemy has closed the connection."""

    lease: Any = None
    was_closed = False

    def _ConnectionRecord__connect(self) -> None:  # noqa: N802  # SQLAlchemy's private name for it
        pool: SharedHostedPool = self._ConnectionRecord__pool  # type: ignore[attr-defined]
        self.dbapi_connection = None
        self.starttime = time.time()
        self.lease = lease = pool._leased()
        try:
            self.dbapi_connection = connection = lease.resource
            self.fresh = True
            self.was_closed = False
            pool._prepare(connection, self, lease.source)
        except BaseException:
            self.dbapi_connection = None
            self.lease = None
            lease.discard()
            raise
        inherited_safely(self)

    def _ConnectionRecord__close(self, *, terminate: bool = False) -> None:  # noqa: N802
        pool: SharedHostedPool = self._ConnectionRecord__pool  # type: ignore[attr-defined]
        self.finalize_callback.clear()
        connection, self.dbapi_connection = self.dbapi_connection, None
        self.was_closed = True
        if pool.dispatch.close:
            pool.dispatch.close(connection, self)
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.discard()  # which closes it in the host


class SharedHostedPool(SharedPool):
    """Made by `shared_pool(..., placement="host")`."""

    configure: ClassVar[Any] = None

    def _declare(self, recipe: opening.EngineRecipe) -> tuple[Any, opening.EngineRecipe]:
        creator: Any = self._creator_arg
        configure = type(self).__dict__.get("configure")
        hosted = recipe_for(self.name, creator, self._dialect, configure)
        _knows_lost_hosts(self._dialect)
        self._seen: set[int] = set()
        self._preparing = threading.Lock()
        self._out: set[int] = set()
        shared = self.manager.pool(self.name, hosted, **self._options())
        return opening.declare(shared, recipe)

    def _options(self) -> dict[str, Any]:
        recycles = self._recycle is not None and self._recycle > -1
        return {
            **super()._options(),
            "max_lifetime": float(self._recycle) if recycles else None,
            "check_idle_for": 0.0 if self._pre_ping else None,
            **self.more,
        }

    # --- checkout and return ------------------------------------------------------------------------------

    def _do_get(self) -> ConnectionPoolEntry:
        record = HostedRecord(self)
        self._out.add(id(record))
        return record

    def _leased(self) -> Any:
        """A lease. Raises what SQLAlchemy's users know."""
        self._refuse_what_stays_here()
        try:
            return self._checkout(self._timeout)
        except PoolError as error:
            failure = error
        raise self._translated(failure)

    def _refuse_what_stays_here(self) -> None:
        dialect: Any = self._dialect
        if getattr(dialect, "_has_events", False) and dialect.dispatch.do_connect:
            raise ConfigurationError(
                f"pool {self.name!r}: its engine has do_connect hooks, which cannot run in a host; say what they add in the "
                "URL or connect_args, give a creator that can be imported, or leave placement out"
            )

    def _prepare(self, connection: Any, record: HostedRecord, source: int) -> None:
        """Run the hooks for a new connection, the first time that this process has it. The dialect's own ran in the host."""
        if source in self._seen:
            return
        with (
            self._preparing
        ):  # the first one asks the database what the dialect wants to know of it
            for hook in list(self.dispatch.connect):
                if not _is_the_dialects(hook):
                    hook(connection, record)
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen.add(source)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        self._out.discard(id(record))
        lease = record.lease  # type: ignore[attr-defined]
        if lease is None:
            return
        record.lease = None  # type: ignore[attr-defined]
        if record.dbapi_connection is not None:
            self._release(lease)
            return
        lease.discard()
        if not record.was_closed:  # type: ignore[attr-defined]
            raise exc.InvalidRequestError(
                f"pool {self.name!r}: a connection of a host cannot be detached from its pool; it belongs to the host, and "
                "was closed"
            )

    def _invalidate(
        self,
        connection: PoolProxiedConnection,
        exception: BaseException | None = None,
        _checkin: bool = True,
    ) -> None:
        try:
            super()._invalidate(connection, exception, _checkin)
        except PoolError:  # its host is gone, and with it all that was to be ended
            log.debug("pool %r: nothing is left to be invalidated", self.name, exc_info=True)

    # --- figures of this process --------------------------------------------------------------------------

    def checkedin(self) -> int:
        """Nothing lies idle in this process."""
        return 0

    def checkedout(self) -> int:
        """How many this process uses."""
        return len(self._out)


def _knows_lost_hosts(dialect: Any) -> None:
    """Have a lost host count as a disconnect. The dialect's own look would ask the connection, and fail."""
    theirs = dialect.is_disconnect
    if hasattr(theirs, "knows_lost_hosts"):
        return

    def is_disconnect(error: Any, connection: Any, cursor: Any) -> bool:
        return isinstance(error, StaleLease) or theirs(error, connection, cursor)

    is_disconnect.knows_lost_hosts = True  # type: ignore[attr-defined]
    dialect.is_disconnect = is_disconnect


def _is_the_dialects(hook: Any) -> bool:
    """What the dialect does to each connection, which was done in the host. (The engine's first look at the database is not.)"""
    return (
        getattr(hook, "__module__", "") == "sqlalchemy.engine.create"
        and getattr(hook, "__qualname__", "") == "create_engine.<locals>.on_connect"
    )
