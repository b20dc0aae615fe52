"""Django looks here for the wrapper of the backend."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql import base

from mppool.integrations.django.pooling import SharedPoolMixin


class DatabaseOperations(base.DatabaseWrapper.ops_class):  # type: ignore[misc]
    """Django's own, that has statements composed where the connection is."""

    def compose_sql(self, sql: Any, params: Any) -> Any:
        """A statement with its parameters in it."""
        wrapper = self.connection
        wrapper.ensure_connection()
        if not wrapper.is_hosted:
            return super().compose_sql(sql, params)
        return wrapper.connection.django_compose_sql(sql, params)


class DatabaseSchemaEditor(base.DatabaseWrapper.SchemaEditorClass):  # type: ignore[misc]
    """The same."""

    def quote_value(self, value: Any) -> Any:
        """A value as a literal of a statement."""
        if not self.connection.is_hosted:
            return super().quote_value(value)
        return self.connection.ops.compose_sql("%s", [value])


class DatabaseWrapper(SharedPoolMixin, base.DatabaseWrapper):  # type: ignore[misc]
    """Django's own, with its connections from the pool."""

    ops_class = DatabaseOperations
    SchemaEditorClass = DatabaseSchemaEditor
    may_be_hosted = base.is_psycopg3

    def create_cursor(self, name: str | None = None) -> Any:
        """A cursor. One with a name is made in the host as Django makes it; others need nothing there."""
        if not self.is_hosted:
            return super().create_cursor(name)
        if name:
            return self.connection.django_cursor(name)
        return self.connection.cursor()

    def serve_workers(self) -> None:
        """See SharedPoolMixin."""
        self.connection.django_cursor = self.create_cursor
        self.connection.django_compose_sql = self.ops.compose_sql
