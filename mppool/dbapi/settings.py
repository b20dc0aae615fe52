"""A connection as it was when it had been opened, so that it is so again after each lease."""

from __future__ import annotations

from typing import Any

from mppool.dbapi import autocommit as mode

# mssql-python's, as pyodbc's: SQL types are small integers, drivers' own ones are around -150.
_SQL_TYPES = range(-400, 401)
_DECODED = ("SQL_CHAR", "SQL_WCHAR", "SQL_WMETADATA")


class Settings:
    """What can be seen and put back: the autocommit mode, a query timeout, encodings and output converters."""

    __slots__ = ("converters", "decodings", "encoding", "mode", "timeout")

    def __init__(self, connection: Any, module: Any) -> None:
        self.mode = mode.read(connection)
        self.timeout = _timeout_of(connection)
        self.encoding: dict[str, Any] | None = None
        self.decodings: list[tuple[int, dict[str, Any]]] = []
        self.converters: list[tuple[int, Any]] | None = None
        if callable(getattr(connection, "getdecoding", None)):
            self.encoding = dict(connection.getencoding())
            kinds = [getattr(module, name) for name in _DECODED if hasattr(module, name)]
            self.decodings = [(kind, dict(connection.getdecoding(kind))) for kind in kinds]
        if callable(getattr(connection, "clear_output_converters", None)):
            found = ((kind, connection.get_output_converter(kind)) for kind in _SQL_TYPES)
            self.converters = [(kind, one) for kind, one in found if one is not None]

    def put_back(self, connection: Any) -> None:
        """Make it so again. An open transaction is over: turning autocommit on would commit it."""
        if mode.read(connection) != self.mode:
            mode.write(connection, self.mode)
        if self.timeout is not None and _timeout_of(connection) != self.timeout:
            connection.timeout = self.timeout
        if self.encoding is not None and connection.getencoding() != self.encoding:
            connection.setencoding(**self.encoding)
        for kind, decoding in self.decodings:
            if connection.getdecoding(kind) != decoding:
                connection.setdecoding(kind, **decoding)
        if self.converters is not None:
            connection.clear_output_converters()
            for kind, converter in self.converters:
                connection.add_output_converter(kind, converter)


def _timeout_of(connection: Any) -> int | None:
    timeout = getattr(connection, "timeout", None)
    return timeout if isinstance(timeout, int) and not isinstance(timeout, bool) else None
