"""PsycopgRecipe and AsyncPsycopgRecipe: PostgreSQL through psycopg 3."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from mppool.aio.recipe import AsyncRecipe
from mppool.dbapi.arguments import Arguments, Asked
from mppool.dbapi.async_login import connected
from mppool.dbapi.labels import LONGEST_APPLICATION, takes_application_name
from mppool.dbapi.recipe import DbApiRecipe, shown
from mppool.dbapi.secrets import without
from mppool.dbapi.sessions import refuses_login
from mppool.errors import ConfigurationError
from mppool.recipe import Opening, checked_flag

_SHORTEST_S = 2
"""libpq takes no shorter connect_timeout."""


class PsycopgRecipe(DbApiRecipe):
    """Opens connections with `psycopg.connect(conninfo, **kwargs)`.

    conninfo: a connection string or URL of libpq; "" for what the environment says. Or a callable that returns one,
        which is asked when a connection is opened.
    kwargs: further arguments of `psycopg.connect`: `dbname=`, `row_factory=`, `options=`, ... `user=` and `password=`
        may be callables, such as a `mppool.Secret`: see `DbApiRecipe`.
    autocommit: mode of a fresh connection, and again after each lease.
    login_timeout: seconds (whole ones) that opening may take; less where the caller that waits for the
        connection has less left. None: as long as libpq likes.
    discard: execute `DISCARD ALL` at each release: settings, temporary tables, advisory locks and prepared
        statements of the last user are gone. Costs a round trip.

    The rest is as in `DbApiRecipe`.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        autocommit: bool = False,
        login_timeout: float | None = 15,
        discard: bool = False,
        check_query: str = "SELECT 1",
        label_sessions: bool = True,
        **kwargs: Any,
    ) -> None:
        psycopg = _driver(login_timeout, "PsycopgRecipe")
        _check_conninfo(conninfo)
        super().__init__(
            psycopg.connect,
            *([conninfo] if conninfo else []),
            check_query=check_query,
            autocommit=autocommit,
            module=psycopg,
            label_sessions=label_sessions,
            **kwargs,
        )
        self._named: dict[str, Any] = {}
        if isinstance(conninfo, str):
            self._named = _understood(self._arguments, (conninfo,), kwargs)
        self._login_timeout = login_timeout
        self._discard = discard

    def connect(self, opening: Opening) -> Any:
        """Connect, within what is left of the caller's timeout."""
        allowed = [
            seconds for seconds in (self._login_timeout, opening.timeout) if seconds is not None
        ]
        args, kwargs = self.arguments(opening)
        self._named = named = _understood(self._arguments, args, kwargs)
        if allowed and "connect_timeout" not in named:
            kwargs["connect_timeout"] = max(_SHORTEST_S, math.ceil(min(allowed)))
        return self._connect(*args, autocommit=bool(self._autocommit), **kwargs)

    def reset(self, connection: Any) -> None:
        """Roll back, put the autocommit mode back, and where asked to, discard all that the session has."""
        super().reset(connection)
        if not self._discard:
            return
        try:
            connection.autocommit = True
            connection.execute("DISCARD ALL")
            connection.autocommit = self._autocommit
        except self.module.Error as error:
            self._raise_if_dead(error, connection)
            raise

    def describe(self, connection: Any) -> str:
        """Host, port and database as the arguments name them."""
        return _described(self._named)


class AsyncPsycopgRecipe(AsyncRecipe[Any]):
    """Opens connections with `psycopg.AsyncConnection.connect(conninfo, **kwargs)`, for `manager.apool`.

    conninfo, autocommit, login_timeout, discard, check_query, label_sessions, kwargs: as in `PsycopgRecipe`. Callables
        are asked in a thread, coroutine functions in the event loop.

    At the release an open transaction is rolled back. Opening raises psycopg's errors with secrets taken out.
    Secrets are not in `repr`; a pickled recipe holds them, where they are no callables.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str | Awaitable[str]] = "",
        *,
        autocommit: bool = False,
        login_timeout: float | None = 15,
        discard: bool = False,
        check_query: str = "SELECT 1",
        label_sessions: bool = True,
        **kwargs: Any,
    ) -> None:
        _driver(login_timeout, "AsyncPsycopgRecipe")
        _check_conninfo(conninfo)
        self._arguments = Arguments((conninfo,), kwargs)
        self._named: dict[str, Any] = {}
        if isinstance(conninfo, str):
            self._named = _understood(self._arguments, (conninfo,), kwargs)
        self._autocommit = autocommit
        self._login_timeout = login_timeout
        self._discard = discard
        self._check_query = check_query
        self._labels = checked_flag("label_sessions", label_sessions)

    def __repr__(self) -> str:
        return f"AsyncPsycopgRecipe({', '.join(self._arguments.keywords)})"

    async def open(self, opening: Opening) -> Any:
        """Connect. Raises psycopg's error without secrets."""
        return await connected(
            opening, self._arguments, partial(self._attempt, opening.label), refuses_login
        )

    async def _attempt(self, label: str, asked: Asked) -> Any:
        import psycopg

        kwargs = dict(asked.kwargs)
        self._named = named = _understood(self._arguments, asked.args, kwargs)
        if self._login_timeout is not None and "connect_timeout" not in named:
            kwargs["connect_timeout"] = max(_SHORTEST_S, math.ceil(self._login_timeout))
        if self._labels and label and takes_application_name("psycopg", asked.args, kwargs):
            kwargs["application_name"] = label[-LONGEST_APPLICATION:]
        try:
            return await psycopg.AsyncConnection.connect(
                *asked.args, autocommit=self._autocommit, **kwargs
            )
        except Exception as error:  # noqa: BLE001  # raised by `open`, without secrets
            return error

    def refuses_login(self, error: Exception) -> bool:
        """Whether the driver says so: see sessions.py."""
        return refuses_login(error)

    def needs_reset(self, connection: Any) -> bool:
        """Whether a transaction is open, the mode was changed, or everything is to be discarded."""
        return (
            self._discard
            or connection.closed
            or connection.pgconn.transaction_status != 0
            or connection.autocommit != self._autocommit
        )

    async def reset(self, connection: Any) -> None:
        """Roll back, and put the autocommit mode back; where asked to, `DISCARD ALL`.

        Raises ConnectionError where the session is dead.
        """
        try:
            await connection.rollback()
            if self._discard:
                await connection.set_autocommit(True)
                await connection.execute("DISCARD ALL")
            if connection.autocommit != self._autocommit:
                await connection.set_autocommit(self._autocommit)
        except Exception as error:
            self._raise_if_dead(error, connection)
            raise

    async def check(self, connection: Any) -> bool:
        """True if the check query can be executed. Raises ConnectionError where the session is dead."""
        try:
            await connection.execute(self._check_query)
            await connection.rollback()
        except Exception as error:
            self._raise_if_dead(error, connection)
            raise
        return True

    async def cancel(self, connection: Any) -> bool:
        """Have the statement that another task runs end with an error."""
        await connection.cancel_safe()
        return True

    async def close(self, connection: Any) -> None:
        """Close the connection."""
        await connection.close()

    def abandon(self, connection: Any) -> None:
        """End the connection, whose event loop does not run any more."""
        connection.pgconn.finish()

    async def describe(self, connection: Any) -> str:
        """Host, port and database as the arguments name them."""
        return _described(self._named)

    def fingerprint(self) -> str:
        """A keyed hash of the arguments."""
        digest = hashlib.blake2b(person=b"mppool.psycopg", digest_size=16)
        opens = shown([self._arguments.described(shown), self._autocommit])
        digest.update(opens.encode("utf-8", errors="surrogatepass"))
        return f"psycopg-async:{digest.hexdigest()}"

    def _raise_if_dead(self, error: Exception, connection: Any) -> None:
        if connection.closed or connection.broken:
            raise ConnectionError(without(str(error), self._arguments.secrets)) from None


def _driver(login_timeout: float | None, recipe: str) -> Any:
    """psycopg. Raises ConfigurationError where it is missing, and for a login_timeout that is none."""
    try:
        import psycopg
    except ImportError as error:
        raise ConfigurationError(
            f"{recipe} needs psycopg ({error}): pip install 'mppool[psycopg]'"
        ) from error
    if login_timeout is not None and not login_timeout > 0:
        raise ConfigurationError(
            f"login_timeout is {login_timeout!r}; allowed are seconds above 0, or None"
        )
    return psycopg


def _check_conninfo(conninfo: object) -> None:
    if not isinstance(conninfo, str) and not callable(conninfo):
        raise ConfigurationError(
            f"conninfo is a {type(conninfo).__name__}; give a str, or a callable that returns one"
        )


def _understood(
    arguments: Arguments, args: tuple[str, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What the arguments name; its password is hidden from now on. Raises ConfigurationError."""
    named = _named_in(*args)
    arguments.hide("password in conninfo", named.pop("password", None))
    return {**named, **{name: one for name, one in kwargs.items() if name != "password"}}


def _named_in(conninfo: str = "") -> dict[str, Any]:
    """What a connection string names. Raises ConfigurationError, which never shows it."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        named: Any = conninfo_to_dict(conninfo)
    except ProgrammingError:
        named = None
    if named is None:  # outside of the handler, for libpq repeats pieces of the string
        raise ConfigurationError(
            "conninfo cannot be understood; give what libpq takes, such as 'host=db dbname=shop' or "
            "'postgresql://user@db/shop'"
        )
    return dict(named)


def _described(named: dict[str, Any]) -> str:
    return " ".join(
        ("psycopg", *(str(named[name]) for name in ("host", "port", "dbname") if named.get(name)))
    )
