"""What a database says of its own limit and of its sessions, for advice. Looked at only where somebody wants that."""

from __future__ import annotations

from typing import Any

from mppool.logs import Log
from mppool.recipe import Survey

log = Log("mppool")

# The limit, all sessions of users, and those that bear the pool's label.
_POSTGRESQL = (
    "SELECT current_setting('max_connections')::int"
    " - current_setting('superuser_reserved_connections')::int, count(*),"
    " sum(CASE WHEN left(application_name, {length}) = '{prefix}' THEN 1 ELSE 0 END)"
    " FROM pg_stat_activity WHERE backend_type = 'client backend'"
    " OR (backend_type IS NULL AND datid IS NOT NULL)"
)
_MYSQL = (
    "SELECT @@global.max_connections, count(*), 0 FROM information_schema.processlist"
    " WHERE command NOT IN ('Daemon', 'Binlog Dump')"
)
_SQL_SERVER = (
    "SELECT (SELECT CAST(value_in_use AS int) FROM sys.configurations WHERE name = 'user connections'),"
    " count(*), sum(CASE WHEN left(program_name, {length}) = '{prefix}' THEN 1 ELSE 0 END)"
    " FROM sys.dm_exec_sessions WHERE is_user_process = 1"
)

_STATEMENTS = {
    "postgresql": _POSTGRESQL,
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "microsoft sql server": _SQL_SERVER,
    "mssql": _SQL_SERVER,
}

_DRIVERS = {
    "psycopg": "postgresql",
    "psycopg2": "postgresql",
    "pg8000": "postgresql",
    "pymysql": "mysql",
    "MySQLdb": "mysql",
    "mariadb": "mysql",
    "mssql_python": "mssql",
}

_NO_LIMIT_OF_ITS_OWN = 32767
"""What SQL Server lets in where nobody has set anything; its configuration says 0 then."""


def database_of(module: str) -> str:
    """The database that a driver is for; "" where this is not known."""
    return _DRIVERS.get(module.partition(".")[0], "")


def survey(connection: Any, database: str, prefix: str) -> Survey | None:
    """What the database says, where it may be asked. prefix: with which the labels of the pool's sessions begin.

    Whatever it raises is noted in the debug log: users need not be allowed to look. The transaction is rolled back.
    """
    statement = _STATEMENTS.get(database.lower())
    if statement is None:
        return None
    quoted = prefix.replace("'", "''")
    try:
        cursor = connection.cursor()
        try:
            cursor.execute(statement.format(length=len(prefix), prefix=quoted))
            row = cursor.fetchone()
        finally:
            cursor.close()
            connection.rollback()
    except Exception:
        log.debug("the database does not say what its limit is", exc_info=True)
        return None
    limit, sessions, ours = (None if one is None else int(one) for one in row)
    # None bears the label: it was turned off, or this database does not show any.
    return {
        "limit": limit or _NO_LIMIT_OF_ITS_OWN,
        "sessions": sessions or 0,
        "ours": ours or None,
    }
