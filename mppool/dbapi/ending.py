"""Ending sessions of others at the database, by their labels. Only PostgreSQL shows labels and lets a user end its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mppool.dbapi.labels import LONGEST_APPLICATION

_LONGEST_PID = 7
"""Digits, at the end of a label."""

# Only one's own: others may not be ended, and would make the statement fail.
_POSTGRESQL = (
    "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) AS ended FROM pg_stat_activity"
    " WHERE usename = current_user AND pid <> pg_backend_pid()"
    " AND backend_start < clock_timestamp() - interval '{seconds:.3f} seconds'"
    " AND ({labels})) AS those WHERE ended"
)


def end_sessions(connection: Any, database: str, labels: Sequence[str], older_than_s: float) -> int:
    """How many sessions were ended whose label begins with one of these, and that began so long ago at least.

    0 of a database that shows no labels. The transaction is rolled back. Raises what the driver raises.
    """
    if database != "postgresql" or not labels:
        return 0
    cursor = connection.cursor()
    try:
        cursor.execute(statement(labels, older_than_s))
        (ended,) = cursor.fetchone()
    finally:
        cursor.close()
        connection.rollback()
    return int(ended)


def statement(labels: Sequence[str], older_than_s: float) -> str:
    """For PostgreSQL. A label that was too long has lost its beginning there."""
    kept = LONGEST_APPLICATION - _LONGEST_PID
    tails = [label.encode()[-kept:].decode(errors="ignore") for label in labels]
    quoted = [tail.replace("'", "''") for tail in tails]
    either = " OR ".join(f"position('{tail}' in application_name) > 0" for tail in quoted)
    return _POSTGRESQL.format(seconds=max(0.0, older_than_s), labels=either)
