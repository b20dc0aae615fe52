"""The arguments of a recipe: what they must be, and what of them makes connections different."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mppool.errors import ConfigurationError
from mppool.odbc import driver_manager
from mppool.odbc.session import OnConnect
from mppool.recipe import name_of


def described_session(query_timeout: int, on_connect: OnConnect) -> list[str]:
    """What makes connections different, as texts that are equal in all processes."""
    described = [f"query_timeout={query_timeout}"] if query_timeout else []
    if callable(on_connect):
        described.append(f"on_connect={name_of(on_connect)}")
    elif on_connect is not None:
        statements = [on_connect] if isinstance(on_connect, str) else on_connect
        described += [f"on_connect={statement}" for statement in statements]
    return described


def validated_query_timeout(seconds: object) -> int:
    """Whole seconds, 0 for none, or ConfigurationError."""
    if isinstance(seconds, bool) or not isinstance(seconds, int) or seconds < 0:
        raise ConfigurationError(
            f"query_timeout is {seconds!r:.40}; give whole seconds, or 0 for no timeout"
        )
    return seconds


def validated_on_connect(what: Any) -> OnConnect:
    """What is done with a new connection, or ConfigurationError."""
    if what is None or callable(what):
        return what  # type: ignore[no-any-return]
    statements = [what] if isinstance(what, str) else what
    if not isinstance(statements, list | tuple) or not all(
        isinstance(one, str) and one.strip() for one in statements
    ):
        raise ConfigurationError(
            f"on_connect is a {type(what).__name__}; give a statement, a list of statements, or a callable that "
            "takes the connection"
        )
    return tuple(statements)


def check_names_a_driver(pieces: list[tuple[str, str]]) -> None:
    """Raises ConfigurationError for a connection string that the driver manager could do nothing with."""
    if not any(keyword.lower() in ("driver", "dsn", "filedsn") for keyword, _ in pieces):
        raise ConfigurationError(
            "the connection string names neither Driver nor DSN nor FILEDSN; for example "
            "'Driver=SQLite3;Database=shop.db'"
        )


def is_of_sql_server(named: Mapping[str, str]) -> bool:
    """Whether a connection string is for one of Microsoft's drivers for SQL Server.

    named: its values by keyword, in lower case. Of a DSN the driver manager knows the driver.
    """
    driver = named.get("driver", "")
    if not driver and "dsn" in named:
        driver = driver_manager.load().dataSources().get(named["dsn"], "")
    plain = driver.lower()
    return "sql server" in plain or "msodbcsql" in plain


def validated_login_timeout(seconds: float | None) -> float | None:
    """Seconds above 0, None for none, or ConfigurationError."""
    if seconds is None:
        return None
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0 < seconds < math.inf
    ):
        raise ConfigurationError(
            f"login_timeout is {seconds!r}; allowed are seconds above 0, or None"
        )
    return seconds
