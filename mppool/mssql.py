"""MssqlRecipe: SQL Server and Azure SQL through Microsoft's driver for Python, mssql-python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mppool.credentials.loading import adapter
from mppool.dbapi.recipe import DbApiRecipe
from mppool.dbapi.statements import ENDS_TRANSACTION_OF_SQL_SERVER
from mppool.errors import ConfigurationError
from mppool.logs import Log
from mppool.odbc import connection_string as grammar
from mppool.odbc.attributes import (
    ACCESS_TOKEN,
    AZURE_SQL_SCOPE,
    NOT_BESIDE_A_TOKEN,
    AttributeSource,
    asked_for,
    check_token_structure,
    checked,
    described,
    lasting_name,
    text_of,
)
from mppool.odbc.login import Login, LoginSource, Pieces, Text
from mppool.recipe import Opening

logger = Log("mppool.mssql")


class _Asked:
    """What one opening logs in with."""

    __slots__ = ("attributes", "digest", "login")

    def __init__(self, login: Login, attributes: dict[int, Any]) -> None:
        self.login = login
        self.attributes = attributes
        self.digest = login.digest


class MssqlRecipe(DbApiRecipe):
    """Opens connections with `mssql_python.connect(connection_string)`.

    connection_string: of mssql-python; it names no Driver. Or a callable that returns one.
    secrets: values of further keywords, `{"PWD": mppool.Secret(fetch)}`: as in `mppool.odbc.OdbcRecipe`.
    credential: a token credential (azure-identity's, or any with `get_token`): connections are opened with its
        access tokens for Azure SQL, and are its identity's alone. A checkout may name another one, or one
        where this is None. Where a token is used, UID, PWD, Authentication and Trusted_Connection are taken
        out of the connection string. None: the string says all.
    autocommit: mode of a fresh connection, and again after each lease.
    login_timeout: seconds (whole ones) that opening may take; less where the caller that waits for the
        connection has less left. None: as long as the driver likes.
    attrs_before: as in `mppool.odbc.OdbcRecipe`.

    The driver's own pooling is turned off for the process at each opening: it would keep sessions open beyond
    the cap, and it is not told for whom a session was opened. The driver offers no reset of the session: on
    release an open transaction is rolled back, under autocommit by a statement, which costs a round trip;
    settings and temporary tables stay. The rest is as in `DbApiRecipe`.
    """

    token_scope = AZURE_SQL_SCOPE

    def __init__(
        self,
        connection_string: Text,
        *,
        secrets: Mapping[str, Text] | None = None,
        credential: object = None,
        autocommit: bool = False,
        login_timeout: float | None = 15,
        attrs_before: AttributeSource = None,
        check_query: str = "SELECT 1",
    ) -> None:
        module = load()
        self._login = LoginSource(connection_string, secrets, _check_names_no_driver)
        if login_timeout is not None and not login_timeout > 0:
            raise ConfigurationError(
                f"login_timeout is {login_timeout!r}; allowed are seconds above 0, or None"
            )
        super().__init__(
            module.connect,
            check_query=check_query,
            autocommit=autocommit,
            module=module,
        )
        if credential is not None:
            adapter().check(credential)
        self.credential = credential
        if attrs_before is not None and not callable(attrs_before):
            attrs_before = checked(attrs_before)
            if credential is not None and ACCESS_TOKEN in attrs_before:
                raise ConfigurationError(
                    "attrs_before brings an access token (attribute 1256), and the credential another "
                    "one; give one of them"
                )
        self._attrs_before = attrs_before
        self._login_timeout = login_timeout

    def __repr__(self) -> str:
        return f"MssqlRecipe({self._login.shown()!r})"

    def ask(self, opening: Opening) -> _Asked:
        """Ask all callables, `attrs_before` among them."""
        attributes, opening.expires_on = asked_for(self._attrs_before)
        if opening.token is not None:
            attributes[ACCESS_TOKEN] = opening.token.token_struct
        return _Asked(self._login.ask(beside_a_token=ACCESS_TOKEN in attributes), attributes)

    def connect(self, opening: Opening) -> Any:
        """Connect, with the token where there is one. Raises the driver's error without secrets."""
        module = load()
        turn_pooling_off(module)
        asked = opening.asked or self.ask(opening)
        login, attributes, secret = asked.login, asked.attributes, ""
        string = login.text
        if ACCESS_TOKEN in attributes:
            check_token_structure(attributes[ACCESS_TOKEN])
            # A copy that only this call knows: what others hold they may change while the driver reads it.
            attributes[ACCESS_TOKEN] = bytes(bytearray(attributes[ACCESS_TOKEN]))
            secret = text_of(attributes[ACCESS_TOKEN])
            string = grammar.joined(
                [piece for piece in login.pieces if piece[0].lower() not in NOT_BESIDE_A_TOKEN]
            )
        allowed = [
            seconds for seconds in (self._login_timeout, opening.timeout) if seconds is not None
        ]
        try:
            return module.connect(
                string,
                autocommit=bool(self._autocommit),
                attrs_before=attributes or None,
                timeout=max(1, math.ceil(min(allowed))) if allowed else 0,
            )
        except module.Error as error:
            said = [error.driver_error, login.scrubber.scrub(error.ddbc_error)]
            if secret:
                said[1] = said[1].replace(secret, grammar.HIDDEN)
            failure = type(error)(*said)
        raise failure

    def reset(self, connection: Any) -> None:
        """Roll back, also what a statement has begun under autocommit; put back what `open` has left."""
        by_statement = connection.autocommit
        super().reset(connection)
        if not by_statement:
            return
        try:
            connection.cursor().execute(ENDS_TRANSACTION_OF_SQL_SERVER).close()
        except self.module.Error as error:
            self._raise_if_dead(error, connection)
            raise

    def describe(self, connection: Any) -> str:
        """Server and database, as the connection string names them."""
        return self._login.named(("server", "database"))

    def opens(self) -> list[str]:
        """attrs_before, and whose credential it is."""
        whose = [] if self.credential is None else [lasting_name(self.credential)]
        return [*self._login.described(), *described(self._attrs_before), *whose]


def _check_names_no_driver(pieces: Pieces) -> None:
    if any(keyword.lower() in ("driver", "dsn", "filedsn") for keyword, _ in pieces):
        raise ConfigurationError(
            "the connection string names a Driver or DSN; mssql-python brings its own: leave it out, or "
            "use mppool.odbc.OdbcRecipe"
        )


def load() -> ModuleType:
    """The driver. Raises ConfigurationError where it is missing."""
    try:
        import mssql_python
    except ImportError as error:
        raise ConfigurationError(
            f"MssqlRecipe needs mssql-python ({error}): pip install 'mppool[mssql]'"
        ) from error
    module: ModuleType = mssql_python
    return module


def turn_pooling_off(module: ModuleType) -> None:
    """Turn the driver's own pooling off. Its first connection would turn it on where nobody has said no."""
    manager = getattr(module, "PoolingManager", None)
    if manager is None or manager.is_enabled() or not manager.is_initialized():
        if manager is not None and manager.is_enabled():
            logger.warning(
                "the application has turned mssql-python's own pooling on; it is turned off, because it would "
                "keep sessions open beyond the cap and hand them to other identities"
            )
        module.pooling(enabled=False)
