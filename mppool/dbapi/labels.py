"""Whether a driver can tell its database for whom a session is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST_APPLICATION = 63
"""In bytes; PostgreSQL cuts the rest off."""

_FOR_POSTGRESQL = ("psycopg", "psycopg2", "pg8000")


def takes_application_name(module: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether `application_name` may be added: it is PostgreSQL's driver, and nobody has named one."""
    if module.partition(".")[0] not in _FOR_POSTGRESQL or os.environ.get("PGAPPNAME"):
        return False
    return not names_application(args, kwargs)


def names_application(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether arguments of a driver for PostgreSQL say what the application is called."""
    said = (*args, kwargs.get("dsn"), kwargs.get("conninfo"))
    return "application_name" in kwargs or any(
        isinstance(one, str) and "application_name" in one for one in said
    )
