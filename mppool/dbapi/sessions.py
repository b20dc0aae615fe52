"""What a driver's own errors say about a session: whether it is dead.

PEP 249 has no word for it, so this is what each driver says instead: an SQLSTATE, a number, a flag of the
connection, or a sentence.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

_MYSQL_DEAD = frozenset(
    {
        2006,  # server has gone away
        2013,  # lost connection during query
        2014,  # commands out of sync: nobody can use it any more
        2055,  # lost connection, with the reason
        1053,  # server shutdown in progress
        1927,  # MariaDB: connection was killed
        4031,  # closed for inactivity
    }
)
_ORACLE_DEAD = (
    "DPY-1001",
    "DPY-4011",
    "DPI-1080",
    "DPI-1010",
    "ORA-00028",
    "ORA-01012",
    "ORA-02396",
)
_ORACLE_DEAD_TOO = ("ORA-03113", "ORA-03114", "ORA-03135", "ORA-12537", "ORA-12547")

# mssql-python keeps the sentence of an SQLSTATE and drops its number: those of class 08.
_SENTENCES = (
    "Client unable to establish connection",
    "Connection not open",
    "Server rejected the connection",
    "Connection failure during transaction",
    "Communication link failure",
    "Disconnect error",
    "Cannot operate on a closed database",  # sqlite3
)


# What drivers say of a refused login where they have no number for it.
REFUSALS = (
    "password authentication failed",  # libpq; psqlodbc gives it SQLSTATE 08001
    "(18456)",
    "Invalid authorization specification",  # mssql-python's sentence of 28000
)


def sqlstate_is_dead(state: str) -> bool:
    """Whether an SQLSTATE says that the session has ended.

    Class 08, what PostgreSQL says when it ends one, and what Microsoft's driver says where reconnecting failed.
    """
    return state.startswith(("08", "IMC0")) or state in ("57P01", "57P02", "57P03", "57P05")


def refuses_login(error: BaseException) -> bool:
    """Whether an error of `connect` says that the server did not accept user or password."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state in ("28000", "28P01"):
        return True
    first = error.args[0] if error.args else None
    if isinstance(first, tuple) and first:  # pymssql
        first = first[0]
    if isinstance(first, int):
        return first in (1045, 1698, 18456)  # MySQL, MariaDB, SQL Server
    if getattr(first, "full_code", None) == "ORA-01017":  # oracledb
        return True
    text = f"{getattr(error, 'driver_error', '')} {getattr(error, 'ddbc_error', '')} {error}"
    return any(sentence in text for sentence in REFUSALS) or _used_a_password(error)


def _used_a_password(error: BaseException) -> bool:
    """Whether PostgreSQL ended a login after it had asked for the password: its text may be in any language."""
    return bool(getattr(getattr(error, "pgconn", None), "used_password", False))


def is_closed(connection: Any) -> bool:
    """Whether the driver itself knows that the connection is closed; False where it does not say."""
    for name, when in (("closed", True), ("open", False)):
        flag = getattr(connection, name, None)
        if isinstance(flag, bool | int):
            return bool(flag) is when
    return False


def is_dead(error: BaseException, connection: Any) -> bool:
    """Whether an error of the driver says that the session of this connection has ended."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if isinstance(state, str) and state:
        return sqlstate_is_dead(state)
    if is_closed(connection):
        return True
    first = error.args[0] if error.args else None
    if isinstance(first, int):
        return first in _MYSQL_DEAD or (first == 0 and _is_interface_error(error))
    code = getattr(first, "full_code", None)  # oracledb
    if isinstance(code, str):
        return code in _ORACLE_DEAD or code in _ORACLE_DEAD_TOO
    text = str(getattr(error, "driver_error", "") or error)
    return any(sentence in text for sentence in _SENTENCES)


def _is_interface_error(error: BaseException) -> bool:
    """PyMySQL says InterfaceError(0, "") where the socket is gone."""
    return any(one.__name__ == "InterfaceError" for one in type(error).__mro__)


def module_of(connect: Any) -> ModuleType | None:
    """The PEP 249 module that a connect function belongs to, or None where it cannot be seen."""
    import sys

    name = getattr(connect, "__module__", None) or ""
    owner = getattr(connect, "__self__", None)  # psycopg.Connection.connect is a method of a class
    if isinstance(owner, type):
        name = owner.__module__
    if isinstance(owner, ModuleType):  # a function of C
        name = owner.__name__
    while name:
        module = sys.modules.get(name)
        if module is not None and _is_driver(module):
            return module
        public = sys.modules.get(name.lstrip("_"))  # _sqlite3
        if public is not None and _is_driver(public):
            return public
        name = name.rpartition(".")[0]
    return None


def _is_driver(module: ModuleType) -> bool:
    error = getattr(module, "Error", None)
    return isinstance(error, type) and issubclass(error, Exception) and hasattr(module, "apilevel")


_CANCEL_S = 5.0
"""So long the database may take to hear of a cancel, in seconds."""


def cancel(connection: Any) -> bool:
    """Have the statement that runs in another thread end with an error; False where the driver cannot."""
    if callable(getattr(connection, "cancel_safe", None)):  # psycopg 3.2
        connection.cancel_safe(timeout=_CANCEL_S)
        return True
    for name in ("cancel", "interrupt"):  # psycopg 3.1, psycopg2, oracledb; sqlite3
        call = getattr(connection, name, None)
        if callable(call):
            call()
            return True
    return False
