"""SQLAlchemy's connector for aioodbc with its dialect of PostgreSQL: it has one for SQL Server only."""

from __future__ import annotations

from typing import Any

from sqlalchemy.connectors.aioodbc import aiodbcConnector
from sqlalchemy.dialects.postgresql.base import PGDialect


class PostgresqlOverAioodbc(aiodbcConnector, PGDialect):  # type: ignore[misc]
    """postgresql+aioodbc://?odbc_connect=..."""

    supports_statement_cache = True
    driver = "aioodbc"

    def _get_server_version_info(self, connection: Any) -> Any:
        return PGDialect._get_server_version_info(self, connection)  # not ODBC's text

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """By the SQLSTATE that PostgreSQL's driver gives."""
        state = str(e.args[0]) if e.args else ""
        return (
            state.startswith("08")
            or state == "57P01"
            or super().is_disconnect(e, connection, cursor)
        )
