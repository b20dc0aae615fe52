"""What a session is like when it has been opened, and how it is made so again after each lease.

seen and put back     pyodbc's attributes (autocommit, timeout, maxwrite, ...), output converters
put back unseen       encodings, where only mppool has set them: nobody can ask pyodbc for them
put back by the driver   whatever its session reset covers: Microsoft's drivers, not the isolation level
not put back          the rest; `guard=True` sees it being done, and the connection is closed
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mppool.dbapi.statements import ENDS_TRANSACTION_OF_SQL_SERVER, leaves_behind

if TYPE_CHECKING:
    import pyodbc

# Attributes of pyodbc's connections that can be read and set. Older releases do not have all.
_ATTRIBUTES = (
    "autocommit",
    "timeout",
    "maxwrite",
    "decimal_mode",
    "readvar_initsize",
)
# SQL types are small integers; drivers' own ones are around -150. Nobody can ask for all converters.
_SQL_TYPES = range(-400, 401)

_WIDE = "utf-16le" if sys.byteorder == "little" else "utf-16be"
_ENCODING_CALLS = ("setencoding", "setdecoding")

_DBMS_NAME, _DRIVER_NAME = 17, 6

# What ends a transaction that a statement has begun under autocommit, of which the driver knows nothing: by DBMS.
# PostgreSQL's driver notices such transactions, and rolls back.
_ENDS_TRANSACTION = {
    "Microsoft SQL Server": ENDS_TRANSACTION_OF_SQL_SERVER,
    "SQLite": "ROLLBACK",
    "MySQL": "ROLLBACK",
    "MariaDB": "ROLLBACK",
}


class Backend:
    """Which database this is, and which driver: of the first connection of a recipe."""

    __slots__ = ("dbms", "driver")

    def __init__(self, connection: pyodbc.Connection) -> None:
        self.dbms = str(connection.getinfo(_DBMS_NAME))
        self.driver = str(connection.getinfo(_DRIVER_NAME))

    @property
    def resets(self) -> bool:
        """Whether a session reset does anything: some drivers accept the attribute, and ignore it."""
        return "msodbcsql" in self.driver.lower()

    @property
    def database(self) -> str:
        """What the driver calls it. Microsoft's driver passes on what the server calls itself, which may be anything."""
        return "Microsoft SQL Server" if self.resets else self.dbms

    @property
    def ends_transaction(self) -> str | None:
        """The statement that ends a transaction begun by a statement; None: the driver does it."""
        return _ENDS_TRANSACTION.get(self.database)

    def leaves_behind(self, statement: str, resets: bool) -> bool:
        """Whether what a statement does stays for the next user of the session."""
        return leaves_behind(statement, resets=resets and self.resets)


class Left:
    """A connection as it was when it had been opened.

    encodings: the calls that have set them, where they are known; None: a hook has set them that cannot be asked.
    """

    __slots__ = ("attributes", "converters", "encodings")

    def __init__(
        self, connection: pyodbc.Connection, encodings: list[tuple[str, Any, Any]] | None
    ) -> None:
        self.attributes = {
            name: getattr(connection, name) for name in _ATTRIBUTES if hasattr(connection, name)
        }
        found = ((kind, connection.get_output_converter(kind)) for kind in _SQL_TYPES)
        self.converters = [(kind, converter) for kind, converter in found if converter is not None]
        self.encodings = encodings

    def put_back(self, connection: pyodbc.Connection, module: Any) -> None:
        """Make the connection so again. An open transaction is over: turning autocommit on would commit it."""
        for name, value in self.attributes.items():
            if getattr(connection, name) != value:
                setattr(connection, name, value)
        connection.clear_output_converters()
        for kind, converter in self.converters:
            connection.add_output_converter(kind, converter)
        if self.encodings is None:
            return
        connection.setdecoding(module.SQL_CHAR, encoding="utf-8")
        connection.setdecoding(module.SQL_WCHAR, encoding=_WIDE)
        connection.setdecoding(module.SQL_WMETADATA, encoding=_WIDE)
        connection.setencoding(encoding=_WIDE)
        for call, arguments, keywords in self.encodings:
            getattr(connection, call)(*arguments, **keywords)


class Recorder:
    """A connection for `on_connect`, which notes the encodings that are set: nobody can ask pyodbc for them."""

    def __init__(self, connection: pyodbc.Connection, calls: list[tuple[str, Any, Any]]) -> None:
        vars(self).update(_connection=connection, _calls=calls)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        if name not in _ENCODING_CALLS:
            return found

        def noted(*arguments: Any, **keywords: Any) -> Any:
            self._calls.append((name, arguments, keywords))
            return found(*arguments, **keywords)

        return noted

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._connection, name, value)


OnConnect = str | list[str] | tuple[str, ...] | Callable[[Any], object] | None


def run_on_connect(
    what: OnConnect, connection: pyodbc.Connection, calls: list[tuple[str, Any, Any]]
) -> None:
    """Execute the statements, or call the callable, and commit."""
    if what is None:
        return
    if callable(what):
        what(Recorder(connection, calls))
    else:
        for statement in (what,) if isinstance(what, str) else what:
            connection.execute(statement).close()
    if not connection.autocommit:
        connection.commit()
