"""The autocommit mode of a connection, which PEP 249 leaves to each driver."""

from __future__ import annotations

from typing import Any

_UNKNOWN = object()


def read(connection: Any) -> Any:
    """The mode, in whatever words the driver has for it; None where it has none."""
    ask = getattr(connection, "get_autocommit", None)  # PyMySQL, mysqlclient
    if callable(ask):
        return ask()
    mode = getattr(connection, "autocommit", _UNKNOWN)
    if mode is not _UNKNOWN and not callable(mode):
        if mode == -1 and hasattr(connection, "isolation_level"):  # sqlite3, as it always was
            return ("isolation_level", connection.isolation_level)
        return mode
    if hasattr(connection, "in_transaction") and hasattr(connection, "isolation_level"):
        return ("isolation_level", connection.isolation_level)  # sqlite3 before Python 3.12
    return None


def write(connection: Any, mode: Any) -> None:
    """Put a mode back that was read, or set True or False. Does nothing where the driver knows no mode."""
    if isinstance(mode, tuple):
        connection.isolation_level = mode[1]
        return
    setter = getattr(connection, "autocommit", _UNKNOWN)
    if callable(setter):
        setter(mode)
    elif setter is not _UNKNOWN and not (setter == -1 and hasattr(connection, "isolation_level")):
        connection.autocommit = mode
    elif hasattr(connection, "isolation_level"):
        connection.isolation_level = None if mode else ""
