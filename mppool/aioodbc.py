"""AioodbcRecipe: ODBC connections of aioodbc, for `manager.apool`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from mppool.aio.recipe import AsyncRecipe
from mppool.dbapi.async_login import log_in
from mppool.dbapi.recipe import shown
from mppool.dbapi.sessions import sqlstate_is_dead
from mppool.errors import ConfigurationError
from mppool.logs import Log
from mppool.odbc import connection_string as grammar
from mppool.odbc import driver_manager
from mppool.odbc.arguments import check_names_a_driver
from mppool.odbc.connection_thread import call_in_turn, close_without_loop, leave_to_executor
from mppool.odbc.connector import application_of
from mppool.odbc.errors import refuses_login, scrubbed_with, sqlstate
from mppool.odbc.login import AnyText, Login, LoginSource
from mppool.recipe import Opening, checked_flag

log = Log("mppool.aioodbc")


class AioodbcRecipe(AsyncRecipe[Any]):
    """Opens connections with `aioodbc.connect(dsn=connection_string, **kwargs)`.

    connection_string, secrets, label_sessions: as in `OdbcRecipe`. Callables are asked in a thread, coroutine functions in
        the event loop.
    autocommit: of each connection; put back at the release. login_timeout: whole seconds for the driver; None: its own.
    check_query: what `check` executes. kwargs: further arguments of `aioodbc.connect`: `executor=`, `after_created=`, ...

    The driver manager's own pooling is turned off. An open transaction is rolled back at the release. For access tokens, and
    for the session reset of SQL Server, use `OdbcRecipe` with `pool.acheckout()`. Opening raises pyodbc's errors with
    secrets taken out. Secrets are not in `repr`; a pickled recipe holds them, where they are no callables.
    """

    def __init__(
        self,
        connection_string: AnyText,
        *,
        secrets: Mapping[str, AnyText] | None = None,
        autocommit: bool = False,
        login_timeout: int | None = 15,
        check_query: str = "SELECT 1",
        label_sessions: bool = True,
        **kwargs: Any,
    ) -> None:
        _aioodbc()
        is_text = isinstance(connection_string, str) and connection_string.strip()
        if not is_text and not callable(connection_string):
            raise ConfigurationError(
                f"connection_string is a {type(connection_string).__name__}; give a str such as "
                "'Driver=SQLite3;Database=shop.db', or a callable that returns one"
            )
        if login_timeout is not None and not login_timeout >= 1:
            raise ConfigurationError(
                f"login_timeout is {login_timeout!r}; allowed are whole seconds from 1, or None"
            )
        if not isinstance(check_query, str) or not check_query.strip():
            raise ConfigurationError(
                f"check_query is {check_query!r}; give a statement, such as 'SELECT 1'"
            )
        if login_timeout is not None:
            kwargs.setdefault("timeout", int(login_timeout))
        self._login = LoginSource(connection_string, secrets, check_names_a_driver)
        self._labels = checked_flag("label_sessions", label_sessions)
        self._autocommit = checked_flag("autocommit", autocommit)
        self._check_query = check_query
        self._kwargs = kwargs

    def __repr__(self) -> str:
        return f"AioodbcRecipe({', '.join(sorted(self._kwargs))})"

    async def open(self, opening: Opening) -> Any:
        """Connect. Raises pyodbc's error without secrets."""
        driver_manager.load()  # its own pooling is off before the first connection
        outcome = await log_in(
            opening, self._login, partial(self._attempt, opening.label), refuses_login
        )
        if isinstance(outcome, Exception):
            # Outside of the handler: in it the original, with all its text, would be this one's __context__.
            repeats = self._login.scrub(str(outcome)) != str(outcome)
            raise scrubbed_with(self._login.scrub, outcome) if repeats else outcome
        return outcome

    async def _attempt(self, label: str, login: Login) -> Any:
        application = application_of(login, label) if self._labels else []
        string = grammar.with_more(login.text, application)
        try:
            connection = await _aioodbc().connect(
                dsn=string, autocommit=self._autocommit, **self._kwargs
            )
        except Exception as error:  # noqa: BLE001  # raised by `open`, without secrets
            return error
        call_in_turn(connection)
        return connection

    def refuses_login(self, error: Exception) -> bool:
        """See OdbcRecipe."""
        return refuses_login(error)

    async def reset(self, connection: Any) -> None:
        """Roll back, and put the autocommit mode back. Raises ConnectionError where the session is dead."""
        try:
            await connection.rollback()
            if connection.autocommit != self._autocommit:
                connection.autocommit = self._autocommit
        except Exception as error:
            self._raise_if_dead(error, connection)
            raise

    async def check(self, connection: Any) -> bool:
        """True if the check query can be executed. Raises ConnectionError where the session is dead."""
        try:
            cursor = await connection.cursor()
            try:
                await cursor.execute(self._check_query)
            finally:
                await cursor.close()
            await connection.rollback()
        except Exception as error:
            self._raise_if_dead(error, connection)
            raise
        return True

    async def close(self, connection: Any) -> None:
        """Close the connection."""
        if not connection.closed:
            try:
                await connection.close()
            except BaseException:
                leave_to_executor(connection)
                raise

    def abandon(self, connection: Any) -> None:
        """Close it without its event loop, which has ended, or cannot be waited for."""
        close_without_loop(connection)

    async def describe(self, connection: Any) -> str:
        """The driver."""
        return "aioodbc"

    def fingerprint(self) -> str:
        """A keyed hash of the arguments."""
        digest = hashlib.blake2b(person=b"mppool.aioodbc", digest_size=16)
        opens = shown([self._login.described(), self._kwargs, self._autocommit])
        digest.update(opens.encode("utf-8", errors="surrogatepass"))
        return f"aioodbc:{digest.hexdigest()}"

    def _raise_if_dead(self, error: Exception, connection: Any) -> None:
        if connection.closed or sqlstate_is_dead(sqlstate(error)):
            raise ConnectionError(self._login.scrub(str(error))) from None


def _aioodbc() -> Any:
    try:
        import aioodbc
    except ImportError as error:
        raise ConfigurationError(
            f"AioodbcRecipe needs aioodbc ({error}): pip install 'mppool[aioodbc]'"
        ) from error
    return aioodbc
