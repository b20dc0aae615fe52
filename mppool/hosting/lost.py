"""What is raised where a connection in a host is lost: StaleLease, and at once the error of its driver.

A driver raises OperationalError when its connection is lost. Whoever handles that goes on working over hosts: SQLAlchemy,
Django, and applications that try again.
"""

from __future__ import annotations

import sys
from typing import Any

from mppool.errors import StaleLease

_CODES: dict[str, str | int] = {"pyodbc": "08S01", "pymysql": 2013, "MySQLdb": 2013}
"""What the errors of some drivers begin with: the code of a connection that was lost."""

_made: dict[type, type[StaleLease]] = {}


def driver_of(kind: type) -> str:
    """The module of the driver of a connection, by the class; "": there is none that has an OperationalError."""
    for base in kind.__mro__:
        name = base.__module__
        while name:
            if _error_in(name) is not None:
                return name
            name = name.rpartition(".")[0]
    return ""


def lost(driver: str, text: str) -> StaleLease:
    """The error. driver: as `driver_of` has it; nobody can handle errors of one that was not imported here."""
    error = _error_in(driver)
    if error is None:
        return StaleLease(text)
    kind = _made.get(error)
    if kind is None:
        members = {"__module__": __name__, "__reduce__": _reduced, "driver": driver}
        kind = _made.setdefault(error, type("LostConnection", (StaleLease, error), members))
    code = _CODES.get(driver)
    arguments = (text,) if code is None else (code, text)
    try:
        return kind(*arguments)
    except TypeError:  # the driver's own takes other arguments
        made = kind.__new__(kind, *arguments)
        made.args = arguments
        return made


def _reduced(self: Any) -> tuple[Any, ...]:
    return lost, (self.driver, self.args[-1])


def _error_in(module: str) -> type[Exception] | None:
    found = getattr(sys.modules.get(module), "OperationalError", None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None
