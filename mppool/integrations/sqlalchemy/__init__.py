"""SQLAlchemy engines over one pool for all processes: `create_engine(url, poolclass=shared_pool(manager, "shop"))`.

    engine.connect() -> SharedPool._do_get -> mppool's checkout -> Held -> its Record -> SQLAlchemy's fairy

SQLAlchemy's record and fairy do what they always do: events, reset, pre-ping, recycling, invalidation. Only
the queue of QueuePool is replaced.

  pool.py        SharedPool: the pool class
  record.py      Record and Held: a connection, as SQLAlchemy sees it and as mppool keeps it
  hosted.py      the same over hosts
  asynchronous.py  the same for asynchronous engines
  opening.py     the recipe: how a record is opened, checked and closed; whose token it was opened with
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mppool.errors import ConfigurationError

try:
    from mppool.integrations.sqlalchemy.pool import OWN_OPTIONS, SharedPool
except ModuleNotFoundError as error:
    if error.name != "sqlalchemy":
        raise
    raise ModuleNotFoundError(
        "mppool.integrations.sqlalchemy needs SQLAlchemy: pip install 'mppool[sqlalchemy]'",
        name=error.name,
    ) from error
from mppool.options import checked_name

if TYPE_CHECKING:
    from mppool.base_manager import Manager

__all__ = ["SharedPool", "shared_async_pool", "shared_pool"]


def shared_pool(
    manager: Manager, name: str, *, open_in_caller: bool = False, **options: Any
) -> type[SharedPool]:
    """A pool class for `create_engine(url, poolclass=...)`: one pool for all processes that name it.

    manager, name: whose pool, as in `manager.pool(name, ...)`. Engines made with the same manager and name
        share one pool; in one process they must have the same URL and the same options.
    open_in_caller: whether connecting, with its hooks, must happen in the thread that asks, for a `creator` or hooks
        that look into a `threading.local`. Else that thread is served by whatever comes first, a connection
        that is given back or a new one.
    options: further options of the pool, such as `max_per_process`, `max_waiting`, `check_interval`, `keep`, `budget`,
        `lanes`; and `lane`, in which the engines of this class check out. `placement="host"` has connections opened in
        hosts, and driven from here; `configure` is a function that prepares each of them there, and must be importable.

    All options of SQLAlchemy's QueuePool mean what it says. `pool_size + max_overflow` is the cap of all
    processes together, `pool_size` of it is kept. Costs nothing before the first checkout.

    Raises ConfigurationError for a bad name, and for options that SQLAlchemy's own say.
    """
    if options.get("placement") != "host":
        return _made(SharedPool, manager, name, options, open_in_caller=open_in_caller)
    if open_in_caller:
        raise ConfigurationError(
            f"pool {name!r}: placement='host' is not possible with open_in_caller=True: in a host no connection belongs "
            "to a thread of the caller"
        )
    from mppool.integrations.sqlalchemy.hosted import SharedHostedPool

    return _made(SharedHostedPool, manager, name, options, configure=options.pop("configure", None))


def shared_async_pool(manager: Manager, name: str, **options: Any) -> type[SharedPool]:
    """The same for `create_async_engine(url, poolclass=...)`: connections that belong to event loops.

    Tested over asyncpg and psycopg. A task that waits blocks no loop.
    One engine may be used in several loops: each has connections of its own, under one cap.

    Raises ConfigurationError as `shared_pool` does.
    """
    if options.get("placement") == "host":
        raise ConfigurationError(
            f"pool {name!r}: placement='host' is not offered for asynchronous engines, whose connections belong to an "
            "event loop; use shared_pool with create_engine in threads, or leave placement out"
        )
    from mppool.integrations.sqlalchemy.asynchronous import SharedAsyncPool

    return _made(SharedAsyncPool, manager, name, options)


def _made(
    kind: type[SharedPool], manager: Manager, name: str, options: dict[str, Any], **more: Any
) -> type[SharedPool]:
    if not callable(getattr(manager, "pool", None)):
        raise ConfigurationError(
            f"the manager of pool {name!r} is {manager!r:.80}; give a manager: shared_pool(PoolManager('shop'), {name!r})"
        )
    checked_name("pool", name)
    for option in options:
        if option in OWN_OPTIONS:
            raise ConfigurationError(
                f"pool {name!r}: {option} follows from create_engine's {OWN_OPTIONS[option]}; say it there"
            )
    # The module is the one under which applications look for the log of a pool.
    lane = options.pop("lane", None)
    own = {"manager": manager, "name": name, "more": options, "lane": lane, **more}
    return type(kind.__name__, (kind,), {**own, "__module__": "sqlalchemy.pool.impl"})
