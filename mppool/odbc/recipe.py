"""OdbcRecipe: how one ODBC connection is opened, given back clean, checked and closed."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import TYPE_CHECKING, Any

from mppool.credentials.loading import adapter
from mppool.dbapi.sessions import sqlstate_is_dead
from mppool.dbapi.survey import survey
from mppool.errors import ConfigurationError
from mppool.logs import Log
from mppool.odbc import driver_manager
from mppool.odbc.arguments import (
    check_names_a_driver,
    described_session,
    validated_login_timeout,
    validated_on_connect,
    validated_query_timeout,
)
from mppool.odbc.attributes import ACCESS_TOKEN as _ACCESS_TOKEN
from mppool.odbc.attributes import (
    AZURE_SQL_SCOPE,
    AttributeSource,
    checked,
    described,
    lasting_name,
)
from mppool.odbc.connector import Connector
from mppool.odbc.errors import (
    has_expired,
    message_of,
    refuses_login,
    scrubbed_with,
    sqlstate,
)
from mppool.odbc.login import LoginSource, Text
from mppool.odbc.session import Backend, Left, OnConnect, run_on_connect
from mppool.recipe import Opening, Recipe, Survey, checked_flag, overrides

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyodbc

logger = Log("mppool.odbc")

# SQL_ATTR_RESET_CONNECTION and its one value (ODBC 3.8): the driver resets the session with its
# next request.
_RESET_CONNECTION, _YES = 116, 1
_NEITHER = (("Trusted_Connection", "No"), ("Authentication", ""))
# What a driver answers that does not know an attribute: optional feature not implemented, invalid
# attribute, driver does not support this function.
_UNKNOWN_ATTRIBUTE = frozenset({"HYC00", "HY092", "IM001"})


class OdbcRecipe(Recipe["pyodbc.Connection"]):
    """Opens connections with `pyodbc.connect`.

    connection_string: any that the driver manager understands; a value that holds `;` in braces. Or a callable
        that returns one, which is asked when a connection is opened.
    secrets: values of further keywords, `{"PWD": mppool.Secret(fetch)}`: texts, or callables that are asked when a
        connection is opened. Where a login is refused with what callables have returned, they are asked once
        more before the attempt counts as failed. What they return is not part of the pool's key.
    credential: a token credential (azure-identity's, or any with `get_token`): connections are opened
        with its access tokens for Azure SQL, and are its identity's alone. A checkout may name
        another one, or one where this is None. Where a token is used, UID, PWD, Authentication and
        Trusted_Connection are taken out of the connection string. None: the string says all.
    autocommit: mode of a fresh connection, and again after each lease.
    login_timeout: seconds (whole ones: fractions are rounded up) that opening may take; less where
        the caller that waits for the connection has less left. None: as long as the driver likes.
    attrs_before: connection attributes to set before connecting, `{number: value}`; or a callable
        that is called only when a physical connection is opened and returns such a mapping, or a
        tuple of it and the time (seconds since the epoch, or None) at which what it holds expires:
        the connection is replaced 300 seconds earlier.
    session_reset: what is done on release beside the rollback. "auto": the driver is asked to reset
        the session (Microsoft's drivers do, with the next request); one that says that it cannot is
        not asked again. True: a driver that cannot is refused at opening. False: never.
    check_query: what `check` executes.
    query_timeout: seconds (whole ones) that a statement may take; 0: as long as it likes.
    on_connect: a statement, several, or a callable that takes the connection: done and committed when a
        connection is opened, and again after each session reset, which would undo it.
    ends_transactions: under autocommit a statement may begin a transaction (`BEGIN`) of which the driver
        knows nothing. True: what ends it is sent with each release under autocommit (SQL Server, SQLite,
        MySQL; PostgreSQL's driver does it by itself). False: nobody begins any.

    label_sessions: SQL Server shows each session under application (the manager's name), pool and pid, as
        `program_name` of sys.dm_exec_sessions, unless the connection string names an APP. False: it does not.

    On release an open transaction is rolled back, and what can be seen is put back as `open` and
    `configure` have left it, overridden or not: autocommit, query timeout, output converters,
    `maxwrite` and the like; encodings where neither is overridden. A session reset does not
    restore the isolation level of SQL Server. Where the driver resets nothing, settings made by
    `SET`, temporary tables and the like stay: override `reset`, call this one and then, for
    PostgreSQL, execute `DISCARD ALL` (which wants autocommit on); or give the pool `guard=True`, which
    sees that and closes the connection. docs/odbc.md has the table.

    The driver manager's own pooling is turned off for the process, before its first connection.

    Raises ConfigurationError for what can be seen at once to be unusable. Opening raises pyodbc's
    error (its first argument is the SQLSTATE) with secrets taken out, and ConfigurationError where
    pyodbc, libodbc, the driver or the data source is missing. Secrets are not in its messages
    and not in `repr`. A pickled recipe holds those that were given as text.
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
        session_reset: str | bool = "auto",
        check_query: str = "SELECT 1",
        query_timeout: int = 0,
        on_connect: OnConnect = None,
        ends_transactions: bool = True,
        label_sessions: bool = True,
    ) -> None:
        self._login = LoginSource(connection_string, secrets, check_names_a_driver)
        if credential is not None:
            adapter().check(credential)
        self.credential = credential
        self._autocommit = checked_flag("autocommit", autocommit)
        if attrs_before is not None and not callable(attrs_before):
            attrs_before = checked(attrs_before)
            if credential is not None and _ACCESS_TOKEN in attrs_before:
                raise ConfigurationError(
                    "attrs_before brings an access token (attribute 1256), and the credential another "
                    "one; give one of them"
                )
        self._attrs_before = attrs_before
        self._connector = Connector(
            self._login,
            attrs_before,
            autocommit,
            validated_login_timeout(login_timeout),
            checked_flag("label_sessions", label_sessions),
        )
        if session_reset != "auto" and not isinstance(session_reset, bool):
            raise ConfigurationError(
                f"session_reset is {session_reset!r}; allowed are 'auto', True and False"
            )
        self._session_reset = session_reset
        self._driver_resets = session_reset is not False
        if not isinstance(check_query, str) or not check_query.strip():
            raise ConfigurationError(
                f"check_query is {check_query!r}; give a statement, such as 'SELECT 1'"
            )
        self._check_query = check_query
        self._query_timeout = validated_query_timeout(query_timeout)
        self._on_connect = validated_on_connect(on_connect)
        self._ends_transactions = checked_flag("ends_transactions", ends_transactions)
        self._renew()

    def _renew(self) -> None:
        # By id, without a reference: pyodbc's connections cannot be referred to weakly. An entry ends with `close`,
        # or with the next connection at the address.
        self._left: dict[int, Left] = {}
        self._connecting: dict[int, list[tuple[str, Any, Any]]] = {}
        self._backend: Backend | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_left", "_connecting", "_backend")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._renew()

    def __repr__(self) -> str:
        return f"OdbcRecipe({self._login.shown()!r}, autocommit={self._autocommit})"

    def open(self, opening: Opening) -> pyodbc.Connection:
        """Connect. Raises pyodbc's error, scrubbed, or ConfigurationError."""
        outcome = self._connect(opening)
        if isinstance(outcome, Exception):
            # Outside of the frame that knows the connection string, and of the handler of the original error:
            # nothing of either is in this one's traceback or context.
            raise outcome
        return outcome

    def _connect(self, opening: Opening) -> pyodbc.Connection | Exception:
        connection = self._connector.connect(opening)
        if isinstance(connection, Exception):
            return connection
        try:
            if self._query_timeout:
                connection.timeout = self._query_timeout
            calls = self._connecting[id(connection)] = []
            run_on_connect(self._on_connect, connection, calls)
        except driver_manager.load().Error as error:
            connection.close()
            return self._scrubbed(error)
        except BaseException:
            connection.close()
            raise
        if self._session_reset is True:
            self._insist_on_session_reset(connection)
        return connection

    def opened(self, connection: pyodbc.Connection) -> None:
        """Note how `open` and `configure` have left it, overridden or not: so it is put back after each lease."""
        calls = self._connecting.pop(id(connection), None)
        self._left[id(connection)] = Left(connection, calls if self._knows_encodings() else None)
        if self._backend is None:
            self._backend = Backend(connection)

    def _knows_encodings(self) -> bool:
        return type(self).open is OdbcRecipe.open and not overrides(self, "configure")

    def leaves_behind(self, name: str, arguments: tuple[Any, ...]) -> bool:
        """See Recipe.leaves_behind."""
        if name == "set_attr":
            return True
        if name in ("setencoding", "setdecoding"):
            return not self._knows_encodings()
        if name not in ("execute", "executemany") or not arguments or self._backend is None:
            return False
        statement = arguments[0]
        return isinstance(statement, str) and self._backend.leaves_behind(
            statement, self._driver_resets
        )

    def refuses_login(self, error: Exception) -> bool:
        """Whether the SQLSTATE says so: 28000, invalid authorization; or SQL Server's error 18456."""
        return refuses_login(error)

    def reset(self, connection: pyodbc.Connection) -> None:
        """Roll back, and put back what `open` and `configure` have left.

        Raises pyodbc's error if that fails, ConnectionError if it does because the session is dead.
        """
        module = driver_manager.load()
        try:
            by_statement = connection.autocommit
            # Before autocommit is touched: turning it on commits.
            connection.rollback()
            left = self._left.get(id(connection))
            if left is not None:
                left.put_back(connection, module)
            else:
                self._put_back_what_was_asked_for(connection)
            if self._driver_resets:
                self._reset_session(connection)
            is_reset = self._driver_resets and self._backend is not None and self._backend.resets
            if is_reset and self._on_connect is not None:
                # The reset, which goes with the first of these, undoes what they have set.
                run_on_connect(self._on_connect, connection, [])
            elif by_statement and self._ends_transactions:
                self._end_transaction(connection)
        except module.Error as error:
            if not sqlstate_is_dead(sqlstate(error)):
                raise
            raise ConnectionError(message_of(self._scrubbed(error))) from None

    def check(self, connection: pyodbc.Connection) -> bool:
        """True if the check query can be executed.

        An error of the query itself (SQLSTATE 42...) says nothing about the connection, and is
        raised. ConnectionError if the session is dead: whatever ended it has likely ended the
        others too (a restart, a failover, a firewall), so the pool replaces all of them.
        """
        return self._check(connection)

    def _check(self, connection: pyodbc.Connection, *, expires: bool = False) -> bool:
        """expires: the driver was told how long this may take."""
        module = driver_manager.load()
        try:
            cursor = connection.cursor()
            try:
                cursor.execute(self._check_query)
                if cursor.description is not None:
                    cursor.fetchall()
            finally:
                cursor.close()
            # Else the check itself would leave a transaction open, for as long as the connection is
            # idle.
            connection.rollback()
        except module.Error as error:
            state = sqlstate(error)
            if state.startswith("42"):
                raise
            if sqlstate_is_dead(state):
                raise ConnectionError(message_of(self._scrubbed(error))) from None
            if expires and has_expired(state):
                raise TimeoutError(message_of(self._scrubbed(error))) from None
            logger.info("%s does not answer: %s", self.describe(connection), self._scrubbed(error))
            return False
        return True

    def survey(self, connection: pyodbc.Connection, prefix: str) -> Survey | None:
        """See Recipe: of SQL Server, PostgreSQL, MySQL and MariaDB, where the user may look."""
        return None if self._backend is None else survey(connection, self._backend.database, prefix)

    def check_within(self, connection: pyodbc.Connection, seconds: float) -> bool:
        """`check`, with the driver told how long it may take. Raises TimeoutError if it does not answer by then.

        A connection that a firewall has forgotten would keep it for minutes. Not all drivers obey
        `connection.timeout`; then the pool gives the check up.
        """
        module = driver_manager.load()
        before = connection.timeout
        try:
            # Whole seconds; the driver should be the first whose patience ends.
            connection.timeout = max(1, math.ceil(seconds) - 1)
        except module.Error as error:
            logger.debug("%s bounds nothing: %s", self.describe(connection), message_of(error))
            return self.check(connection)
        try:
            return self._check(connection, expires=True)
        finally:
            try:
                connection.timeout = before
            except module.Error as error:  # it is dead
                logger.debug("%s: %s", self.describe(connection), message_of(error))

    def close(self, connection: pyodbc.Connection) -> None:
        """Close the connection, unless its user did so already."""
        self._left.pop(id(connection), None)
        if not connection.closed:
            connection.close()

    def describe(self, connection: pyodbc.Connection) -> str:
        """Driver or data source, server and database, as the connection string names them."""
        # The connection is not asked: it may be in the middle of a statement, in another thread.
        return self._login.named(("driver", "dsn", "filedsn", "server", "port", "database"))

    def fingerprint(self) -> str:
        """A hash of the connection string, of attrs_before and of the credential's identity.

        It does not leave the process: others are told a hash of it that is keyed with the runtime directory's secret.
        """
        digest = hashlib.blake2b(person=b"mppool.odbc", digest_size=16)
        whose = [] if self.credential is None else [lasting_name(self.credential)]
        session = described_session(self._query_timeout, self._on_connect)
        for part in (*self._login.described(), *described(self._attrs_before), *whose, *session):
            encoded = part.encode("utf-8", errors="surrogatepass")
            digest.update(struct.pack("<Q", len(encoded)) + encoded)
        return f"odbc:{digest.hexdigest()}"

    def _scrubbed(self, error: Exception) -> Exception:
        return scrubbed_with(self._login.scrub, error)

    def _put_back_what_was_asked_for(self, connection: pyodbc.Connection) -> None:
        """For a connection that no pool has opened."""
        if connection.autocommit is not self._autocommit:
            connection.autocommit = self._autocommit
        if connection.timeout != self._query_timeout:
            connection.timeout = self._query_timeout

    def _end_transaction(self, connection: pyodbc.Connection) -> None:
        """End what a statement has begun, where the driver does not know of it: else it would hold its locks while
        the connection lies idle.
        """
        statement = None if self._backend is None else self._backend.ends_transaction
        if statement is None:
            return
        try:
            connection.execute(statement).close()
        except driver_manager.load().Error as error:
            if "no transaction is active" not in message_of(error):
                raise

    # --- session reset ----------------------------------------------------------------------------

    def _reset_session(self, connection: pyodbc.Connection) -> None:
        module = driver_manager.load()
        try:
            connection.set_attr(_RESET_CONNECTION, _YES)
        except module.Error as error:
            if sqlstate(error) not in _UNKNOWN_ATTRIBUTE:
                raise
            # One recipe has one driver: what it does not know it will not know next time.
            self._driver_resets = False
            logger.debug("%s resets no sessions: %s", self.describe(connection), message_of(error))

    def _insist_on_session_reset(self, connection: pyodbc.Connection) -> None:
        self._reset_session(connection)
        if not self._driver_resets:
            self._driver_resets = True
            connection.close()
            raise ConfigurationError(
                f"session_reset is True, but the driver of {self.describe(connection)} cannot reset "
                "a session; allowed for it are 'auto' and False"
            )
