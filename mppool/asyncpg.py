"""AsyncpgRecipe: PostgreSQL through asyncpg, for `manager.apool`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from mppool.aio.recipe import AsyncRecipe
from mppool.aio.sockets import shut_down
from mppool.dbapi.arguments import Arguments, Asked
from mppool.dbapi.async_login import connected
from mppool.dbapi.labels import LONGEST_APPLICATION, names_application
from mppool.dbapi.recipe import shown
from mppool.dbapi.secrets import without
from mppool.dbapi.sessions import refuses_login
from mppool.errors import ConfigurationError
from mppool.logs import Log
from mppool.recipe import Opening, checked_flag

log = Log("mppool.asyncpg")

_CLOSE_S = 2.0
"""A session that does not answer its end within this time is ended without an answer."""


class AsyncpgRecipe(AsyncRecipe[Any]):
    """Opens connections with `asyncpg.connect(dsn, **kwargs)`.

    dsn: a URL of asyncpg; None for what the environment says. Or a callable that returns one, which is asked when a
        connection is opened.
    kwargs: further arguments of `asyncpg.connect`: `host=`, `user=`, `ssl=`, `server_settings=`, ... `user=` and
        `password=` may be callables, such as a `mppool.Secret`. Callables are asked in a thread, coroutine functions in
        the event loop. Where the login is refused they are asked once more.
    application_name: as what the database shows the session; None: as `server_settings` and the URL say.
    label_sessions: where nobody has named the application, PostgreSQL shows each session under application (the manager's
        name), pool and pid.
    login_timeout: seconds that opening may take (asyncpg's `timeout`). None: asyncpg's own.
    reset: whether `connection.reset()` is called at each release, as asyncpg's own pool does: settings, listeners,
        advisory locks and cursors of the last user are gone. It costs a round trip.
    check_query: what `check` executes.

    A transaction that is still open at the release is rolled back in any case. Opening raises asyncpg's errors with
    secrets taken out. Secrets are not in `repr`; a pickled recipe holds them, where they are no callables.
    """

    def __init__(
        self,
        dsn: str | Callable[[], str | Awaitable[str]] | None = None,
        *,
        application_name: str | None = None,
        login_timeout: float | None = 15,
        reset: bool = True,
        check_query: str = "SELECT 1",
        label_sessions: bool = True,
        **kwargs: Any,
    ) -> None:
        _asyncpg()
        if dsn is not None and not isinstance(dsn, str) and not callable(dsn):
            raise ConfigurationError(
                f"dsn is a {type(dsn).__name__}; give a str, a callable that returns one, or None"
            )
        if login_timeout is not None and not login_timeout > 0:
            raise ConfigurationError(
                f"login_timeout is {login_timeout!r}; allowed are seconds above 0, or None"
            )
        if not isinstance(check_query, str) or not check_query.strip():
            raise ConfigurationError(
                f"check_query is {check_query!r}; give a statement, such as 'SELECT 1'"
            )
        if application_name is not None:
            settings = {**(kwargs.get("server_settings") or {})}
            kwargs["server_settings"] = {**settings, "application_name": application_name}
        if login_timeout is not None:
            kwargs.setdefault("timeout", login_timeout)
        self._arguments = Arguments((dsn,), kwargs)
        self._resets = reset
        self._check_query = check_query
        self._labels = checked_flag("label_sessions", label_sessions)

    def __repr__(self) -> str:
        return f"AsyncpgRecipe({', '.join(self._arguments.keywords)})"

    async def open(self, opening: Opening) -> Any:
        """Connect. Raises asyncpg's error without secrets."""
        return await connected(
            opening, self._arguments, partial(self._attempt, opening.label), refuses_login
        )

    async def _attempt(self, label: str, asked: Asked) -> Any:
        kwargs = dict(asked.kwargs)
        settings = kwargs.get("server_settings") or {}
        if self._labels and label and not names_application(asked.args, settings):
            kwargs["server_settings"] = {
                **settings,
                "application_name": label[-LONGEST_APPLICATION:],
            }
        try:
            return await _asyncpg().connect(*asked.args, **kwargs)
        except Exception as error:  # noqa: BLE001  # raised by `open`, without secrets
            return error

    def refuses_login(self, error: Exception) -> bool:
        """Whether PostgreSQL did not accept user or password."""
        return refuses_login(error)

    def needs_reset(self, connection: Any) -> bool:
        """Whether there is anything to undo."""
        return self._resets or connection.is_in_transaction() or connection.is_closed()

    async def reset(self, connection: Any) -> None:
        """Roll back, and have PostgreSQL forget what the last user has set.

        Raises ConnectionError where the session is dead.
        """
        if connection.is_closed():
            raise ConnectionError("the session has ended")
        try:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            if self._resets:
                query = _reset_statement(connection)
                await (connection.reset() if query is None else connection.execute(query))
        except Exception as error:
            self._raise_if_dead(error, connection)
            raise

    async def check(self, connection: Any) -> bool:
        """True if the check query can be executed. Raises ConnectionError where the session is dead."""
        if connection.is_closed():
            raise ConnectionError("the session has ended")
        try:
            await connection.execute(self._check_query)
        except Exception as error:
            self._raise_if_dead(error, connection)
            raise
        return True

    def _raise_if_dead(self, error: Exception, connection: Any) -> None:
        if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
            return  # one class, from Python 3.11 on; it says that nothing was said
        if connection.is_closed() or isinstance(error, (OSError, *_ends_of_sessions())):
            raise ConnectionError(without(str(error), self._arguments.secrets)) from None

    async def close(self, connection: Any) -> None:
        """Close the connection; without an answer of the server where that does not come soon."""
        if connection.is_closed():
            return
        try:
            await connection.close(timeout=_CLOSE_S)
        except Exception:
            # A statement is still running in it, or nobody is there.
            log.debug("asyncpg could not close in order", exc_info=True)
            connection.terminate()

    def abandon(self, connection: Any) -> None:
        """End the connection, whose event loop does not run any more."""
        shut_down(getattr(connection, "_transport", None))

    async def describe(self, connection: Any) -> str:
        """The backend's pid, and where it is."""
        return f"asyncpg {connection.get_server_pid()}"

    def fingerprint(self) -> str:
        """A keyed hash of the arguments."""
        digest = hashlib.blake2b(person=b"mppool.asyncpg", digest_size=16)
        opens = shown(self._arguments.described(shown))
        digest.update(opens.encode("utf-8", errors="surrogatepass"))
        return f"asyncpg:{digest.hexdigest()}"


def _reset_statement(connection: Any) -> str | None:
    """The statement that equals `connection.reset()` here. None: call that instead. To send it takes fewer calls."""
    kind = type(connection)
    try:
        if (
            kind.reset is _asyncpg().Connection.reset
            and kind._reset is _asyncpg().Connection._reset
            and not (connection._listeners or connection._log_listeners)
            and connection._top_xact is None
        ):
            return connection.get_reset_query() or None
    except AttributeError:
        log.debug("asyncpg has other internals; its own reset is called")
    return None


def _asyncpg() -> Any:
    try:
        import asyncpg
    except ImportError as error:
        raise ConfigurationError(
            f"AsyncpgRecipe needs asyncpg ({error}): pip install 'mppool[asyncpg]'"
        ) from error
    return asyncpg


def _ends_of_sessions() -> tuple[type[Exception], ...]:
    """What asyncpg raises where the server has ended a session."""
    asyncpg = _asyncpg()
    return (
        asyncpg.PostgresConnectionError,
        asyncpg.AdminShutdownError,
        asyncpg.CrashShutdownError,
        asyncpg.CannotConnectNowError,
    )
