"""Django looks here for the wrapper of the backend."""

from __future__ import annotations

from typing import Any

from django.db.backends.sqlite3 import base

from mppool.integrations.django.pooling import SharedPoolMixin


class DatabaseWrapper(SharedPoolMixin, base.DatabaseWrapper):  # type: ignore[misc]
    """Django's own, with its connections from the pool."""

    may_be_hosted = True

    def create_cursor(self, name: str | None = None) -> Any:
        """A cursor with Django's placeholders."""
        if not self.is_hosted:
            return super().create_cursor(name)
        from mppool.integrations.django.hosted import ConvertingCursor

        return ConvertingCursor(self.connection.cursor(), base.SQLiteCursorWrapper)
