"""PsycopgRecipe: PostgreSQL through psycopg 3."""

from __future__ import annotations

import math
from typing import Any

from mppool.dbapi.recipe import DbApiRecipe
from mppool.errors import ConfigurationError
from mppool.recipe import Opening

_SHORTEST_S = 2
"""libpq takes no shorter connect_timeout."""


class PsycopgRecipe(DbApiRecipe):
    """Opens connections with `psycopg.connect(conninfo, **kwargs)`.

    conninfo: a connection string or URL of libpq; "" for what the environment says.
    kwargs: further arguments of `psycopg.connect`: `dbname=`, `row_factory=`, `options=`, ...
    autocommit: mode of a fresh connection, and again after each lease.
    login_timeout: seconds (whole ones) that opening may take; less where the caller that waits for the
        connection has less left. None: as long as libpq likes.
    discard: execute `DISCARD ALL` at each release: settings, temporary tables, advisory locks and prepared
        statements of the last user are gone. Costs a round trip.

    The rest is as in `DbApiRecipe`.
    """

    def __init__(
        self,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        login_timeout: float | None = 15,
        discard: bool = False,
        check_query: str = "SELECT 1",
        **kwargs: Any,
    ) -> None:
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
        except ImportError as error:
            raise ConfigurationError(
                f"PsycopgRecipe needs psycopg ({error}): pip install 'mppool[psycopg]'"
            ) from error
        if not isinstance(conninfo, str):
            raise ConfigurationError(f"conninfo is a {type(conninfo).__name__}; give a str")
        if login_timeout is not None and not login_timeout > 0:
            raise ConfigurationError(
                f"login_timeout is {login_timeout!r}; allowed are seconds above 0, or None"
            )
        try:
            named = conninfo_to_dict(conninfo)
        except psycopg.ProgrammingError:
            named = None
        if named is None:  # outside of the handler, for libpq repeats pieces of the string
            raise ConfigurationError(
                "conninfo cannot be understood; give what libpq takes, such as 'host=db dbname=shop' or "
                "'postgresql://user@db/shop'"
            )
        super().__init__(
            psycopg.connect,
            *([conninfo] if conninfo else []),
            check_query=check_query,
            autocommit=autocommit,
            module=psycopg,
            **kwargs,
        )
        password = named.get("password")
        if isinstance(password, str) and password not in self._secrets:
            self._secrets.append(password)
        self._named = {**named, **kwargs}
        self._login_timeout = login_timeout
        self._discard = discard

    def connect(self, opening: Opening) -> Any:
        """Connect, within what is left of the caller's timeout."""
        allowed = [
            seconds for seconds in (self._login_timeout, opening.timeout) if seconds is not None
        ]
        more = {}
        if allowed and "connect_timeout" not in self._named:
            more["connect_timeout"] = max(_SHORTEST_S, math.ceil(min(allowed)))
        return self._connect(*self._args, autocommit=bool(self._autocommit), **more, **self._kwargs)

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
        named = [
            str(self._named[name]) for name in ("host", "port", "dbname") if self._named.get(name)
        ]
        return " ".join(("psycopg", *named))
