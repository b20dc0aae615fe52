"""How the connection of an engine is opened, checked and closed, and whose token it was opened with."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import weakref
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from mppool.dbapi.recipe import shown
from mppool.dbapi.secrets import secrets_in, without
from mppool.dbapi.survey import survey
from mppool.errors import ConfigurationError, OpenFailed
from mppool.integrations.sqlalchemy.record import Held, OurPool, Record
from mppool.logs import Log
from mppool.odbc import driver_manager
from mppool.odbc.attributes import ACCESS_TOKEN, check_token_structure, text_of
from mppool.odbc.connection_thread import call_in_turn
from mppool.process.fork import call_in_children
from mppool.recipe import Opening, Recipe, Survey
from mppool.worker.pool import Pool

if TYPE_CHECKING:
    from mppool.aio.pool import AsyncPool

    SomePool = Pool[Held] | AsyncPool[Held]

log = Log("mppool.sqlalchemy")

_FINGERPRINT_KEY = b"mppool.integrations.sqlalchemy 1"

# Each pool of this process with the recipe that it was declared with first, which is the one that it uses.
_declared: dict[SomePool, tuple[SomePool, EngineRecipe]] = {}

# Opaque parts of creators: as long as they are here their ids are theirs.
_known: dict[int, object] = {}

_entering = threading.Lock()


def _forget() -> None:
    """In a forked child: all of it is the parent's."""
    global _entering
    _entering = threading.Lock()
    for _, recipe in _declared.values():
        recipe.open_here.clear()


call_in_children(_forget)


asking: ContextVar[weakref.ref[OurPool] | None] = ContextVar("mppool-asking", default=None)
"""The face that asked last in this context; a thread that opens on behalf of a waiting one has a copy of that."""


class _Seen(threading.local):
    """attributes: what the last connection of this thread was opened with."""

    attributes: Any = None


_seen = _Seen()


class EngineRecipe(Recipe[Held]):
    """Opens what engines of one URL connect to. All faces of a pool in one process share it.

    open_here: what this process has open. _faces: the SQLAlchemy pools that can open, the newest on the right;
    it outlives each of them, for `Engine.dispose` replaces them. Both are changed without a lock (atomic
    operations). _engines: the dialects of the engines, guarded by _entering.
    """

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self.open_here: set[Held] = set()
        self._faces: deque[weakref.ref[OurPool]] = deque()
        self._engines: list[weakref.ref[Any]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return EngineRecipe, (self._fingerprint,)

    def open(self, opening: Opening) -> Held:
        """Have SQLAlchemy connect, with all its events. Raises OpenFailed, whose cause is the driver's error."""
        pool = self._pool(opening.identity)
        held = Held(pool)
        record = Record(pool, held)
        try:
            record.get_connection()
        except (ConfigurationError, OpenFailed):
            raise
        except Exception as error:
            text = without(f"{type(error).__name__}: {error}", pool.secrets)
            raise OpenFailed(f"pool {pool.name!r}: opening a connection failed: {text}") from error
        held.record = record
        self.open_here.add(held)
        return held

    def check(self, held: Held) -> bool:
        """The dialect's ping, for background checks. ConnectionError if the session is dead."""
        if held.connection is None:  # the next checkout connects
            return True
        if held.pool._dialect._do_ping_w_event(held.connection):
            return True
        raise ConnectionError("the session does not answer the dialect's ping")

    def survey(self, held: Held, prefix: str) -> Survey | None:
        """See Recipe; of a synchronous dialect."""
        dialect = held.pool._dialect
        if held.connection is None or getattr(dialect, "is_async", False):
            return None
        return survey(held.connection, getattr(dialect, "name", ""), prefix)

    def close(self, held: Held) -> None:
        """Close it as SQLAlchemy does, with its event. What was detached is its user's."""
        self.open_here.discard(held)
        record, held.record = held.record, None
        if record is not None:
            record.close()
        elif held.connection is not None:
            held.pool._close_connection(held.connection)
        held.connection = None

    def describe(self, held: Held) -> str:
        """Dialect and driver."""
        dialect = held.pool._dialect
        return f"{getattr(dialect, 'name', 'dbapi')}+{driver_of(dialect) or 'any'}"

    def fingerprint(self) -> str:
        """A keyed hash of what the engine's URL and arguments say."""
        return self._fingerprint

    def enter(self, pool: OurPool) -> str | None:
        """From now on this face may open; for whom its connections are: for its engine alone.

        Engines of one URL share a pool and its cap. But each prepares its connections in its own way, by its
        dialect and by the application's hooks, so none is handed another one's. The first one needs no name.
        """
        self._faces.append(weakref.ref(pool))
        while self._faces and self._faces[0]() is None:
            self._faces.popleft()
        dialect: Any = pool._dialect
        with _entering:
            free = len(self._engines)
            for number, reference in enumerate(self._engines):
                if reference() is dialect:
                    return _name_of(number)
                if reference() is None:  # and with it its connections are gone
                    free = min(free, number)
            self._engines[free : free + 1] = [weakref.ref(dialect)]
        return _name_of(free)

    def _pool(self, identity: str | None) -> OurPool:
        """Who asks; where this thread opens on behalf of another one, the newest of the same engine."""
        known = list(self._faces)
        for reference in (asking.get(), *reversed(known)):
            pool = None if reference is None else reference()
            if pool is not None and pool.recipe is self and pool.identity == identity:
                return pool
        raise ConfigurationError(
            "no engine in this process opens what this pool was declared for; create the engine first"
        )


def declare(shared: SomePool, recipe: EngineRecipe) -> tuple[SomePool, EngineRecipe]:
    """The pool and the recipe with which it was declared first in this process."""
    return _declared.setdefault(shared, (shared, recipe))


def _name_of(number: int) -> str | None:
    return None if number == 0 else f"engine-{number + 1}"


# --- what is opened ---------------------------------------------------------------------------------------


def arguments_of(creator: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What create_engine's own creator calls the driver with; nothing for one of the application's.

    SQLAlchemy tells it no pool class, so it is read off the function.
    """
    cells = dict(
        zip(
            getattr(getattr(creator, "__code__", None), "co_freevars", ()),
            getattr(creator, "__closure__", None) or (),
            strict=False,
        )
    )
    # Early releases of 2.0 keep them in `cargs`.
    positional = cells.get("cargs_tup", cells.get("cargs"))
    if positional is None or "cparams" not in cells:
        return (), {}
    return tuple(positional.cell_contents), dict(cells["cparams"].cell_contents)


def fingerprint_of(creator: Any, dialect: Any) -> str:
    """What is opened, equal in all processes, without secrets."""
    arguments, keywords = arguments_of(creator)
    parts = [getattr(dialect, "name", ""), driver_of(dialect)]
    if arguments or keywords:
        parts += [shown(arguments), shown(keywords)]
    else:
        parts.append(shown(creator, _told_apart))
    digest = hashlib.blake2b(key=_FINGERPRINT_KEY, digest_size=16)
    digest.update("\0".join(parts).encode("utf-8", errors="surrogatepass"))
    return f"sqlalchemy:{digest.hexdigest()}"


def _told_apart(thing: object) -> str:
    """By its identity, which nothing else gets while this process lives.

    So two creators that differ in something opaque are never taken for one, which counts for more than that
    other processes know them by another name.
    """
    _known[id(thing)] = thing
    return f"{type(thing).__qualname__}@{id(thing)}"


def secrets_of(creator: Any) -> list[str]:
    """What must not be in texts that travel."""
    return secrets_in(*arguments_of(creator))


# --- connecting -------------------------------------------------------------------------------------------


def connected(pool: OurPool, record: Any, connect: Any) -> Any:
    """Call the engine's creator for a record, and note what it has opened, and with whose token."""
    dialect = pool._dialect
    if driver_of(dialect) in ("pyodbc", "aioodbc"):
        driver_manager.load()  # the driver manager's own pooling is off before the first connection
    _look_last(dialect)
    _seen.attributes = None
    connection = connect(record)
    attributes, _seen.attributes = _seen.attributes, None
    held = getattr(record, "held", None)
    if held is not None:
        try:
            held.owner = _owner(pool, attributes)
        except BaseException:
            pool._close_connection(connection)
            raise
        held.connection = connection
    if driver_of(dialect) == "aioodbc":
        call_in_turn(dialect.get_driver_connection(connection))
    return connection


def driver_of(dialect: Any) -> str:
    """The driver's name, as in a URL."""
    return str(getattr(dialect, "driver", ""))


def _look_last(dialect: Any) -> None:
    """See what the application's `do_connect` hooks have made of the arguments: ours must be the last of them."""
    if not getattr(dialect, "_has_events", False):
        return
    hooks = list(dialect.dispatch.do_connect)
    if hooks and hooks[-1] is not _see_attributes:
        if _see_attributes in hooks:
            event.remove(dialect, "do_connect", _see_attributes)
        event.listen(dialect, "do_connect", _see_attributes)


def _see_attributes(dialect: Any, record: Any, arguments: Any, keywords: Any) -> None:
    _seen.attributes = keywords.get("attrs_before")


def _owner(pool: OurPool, attributes: Any) -> str | None:
    """Whose access token a `do_connect` hook has given.

    The pool cannot know it before a checkout, so one engine is for one identity: raises ConfigurationError
    where connections of another one are still there, instead of ever handing them to the wrong caller.
    """
    if not isinstance(attributes, dict) or ACCESS_TOKEN not in attributes:
        owner = None
    else:
        check_token_structure(attributes[ACCESS_TOKEN])
        owner = _identity_in(text_of(attributes[ACCESS_TOKEN]))
    for other in list(pool.recipe.open_here):
        mine = other.connection is not None and other.pool._dialect is pool._dialect
        if mine and other.owner != owner:
            raise ConfigurationError(
                f"pool {pool.name!r}: the engine's do_connect hook gives access tokens of several identities, "
                "but an engine's connections are handed to anybody who asks; make one engine for each identity, or "
                "check out of mppool.odbc.OdbcRecipe with credential="
            )
    return owner


def _identity_in(token: str) -> str:
    """Tenant and object of an Azure token, which a newer token of the same identity has too; else its hash."""
    try:
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        who = claims.get("oid") or claims.get("sub") or claims.get("appid")
        if who:
            return f"{claims.get('tid', '')}/{who}"
    except (IndexError, ValueError, AttributeError):
        log.debug("an access token of a do_connect hook is no JWT; its hash tells whose it is")
    return hashlib.sha256(token.encode()).hexdigest()
